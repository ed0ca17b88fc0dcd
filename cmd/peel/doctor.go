package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/peelfs/peel/fs"
	"github.com/peelfs/peel/transfer"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:      "doctor",
		Usage:     "check what peel needs of this machine, and say how to get it",
		ArgsUsage: "[IMAGE]",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "containerd-config", Usage: "look at the containerd that is started with `FILE`"},
			stateFlag(),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Len() > 1 {
				_, err := args(c, "[IMAGE]")
				return err
			}
			return doctor(c, c.Args().First())
		},
	}
}

// finding is one line of the doctor's. What has a remedy is not well.
type finding struct{ what, is, remedy string }

// errIll is the error where peel cannot mount at all.
var errIll = errors.New("nothing can be mounted here; the lines above say what to do")

func doctor(c *cli.Context, ref string) error {
	dir, err := root(c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the store: %w", err)
	}
	findings := []finding{kernel(), device(), fusermount(), fileSystem(dir)}
	drivers, works, err := tryDrivers(dir)
	if err != nil {
		return err
	}
	findings = append(findings, drivers...)
	found, err := containerdFindings(c)
	if err != nil {
		return err
	}
	findings = append(findings, found...)
	if ref != "" {
		found, err := registryFindings(c, ref)
		if err != nil {
			return err
		}
		findings = append(findings, found...)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		mark := "ok"
		if f.remedy != "" {
			mark = "--"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", mark, f.what, f.is)
		if f.remedy != "" {
			fmt.Fprintf(w, "\t\t> %s\n", f.remedy)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !works {
		return errIll
	}
	return nil
}

func kernel() finding {
	f := finding{what: "kernel"}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		f.is = err.Error()
		return f
	}
	f.is = unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(f.is, "%d.%d", &major, &minor); err == nil && (major < 6 || major == 6 && minor < 12) {
		f.remedy = "from Linux 6.12 on metadata is served by the kernel itself; until then images are shown through loop devices or FUSE"
	}
	return f
}

func device() finding {
	f := finding{what: "/dev/fuse", is: "there"}
	d, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case err == nil:
		d.Close()
	case errors.Is(err, os.ErrNotExist):
		f.is, f.remedy = "missing", "modprobe fuse; in a container, give it the device (--device /dev/fuse)"
	default:
		f.is, f.remedy = err.Error(), "as an ordinary user: chmod 666 /dev/fuse, as distributions have it"
	}
	return f
}

func fusermount() finding {
	f := finding{what: "fusermount3"}
	path, err := exec.LookPath("fusermount3")
	switch {
	case err == nil:
		f.is = path
	case os.Geteuid() == 0:
		f.is = "missing, which root does not need"
	default:
		f.is, f.remedy = "missing", "an ordinary user mounts through it: apt-get install fuse3"
	}
	return f
}

// fileSystems are those worth a name or a word.
var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs", unix.F2FS_SUPER_MAGIC: "f2fs",
}

func fileSystem(dir string) finding {
	f := finding{what: "store " + dir}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		f.is = err.Error()
		return f
	}
	name, ok := fileSystems[int64(st.Type)]
	if !ok {
		name = fmt.Sprintf("file system %#x", st.Type)
	}
	free := int64(st.Bavail) * st.Bsize
	f.is = fmt.Sprintf("%s, %s free", name, bytesText(free))
	switch {
	case name == "overlay":
		f.remedy = "the kernel takes no files of an overlay for an EROFS; put the store on another file system (--root), such as a volume"
	case name == "tmpfs":
		f.remedy = "what is fetched is lost with the next restart; put the store on a disk (--root)"
	case name == "nfs":
		f.remedy = "locks and sparse files over NFS are slow; put the store on a local disk (--root)"
	case free < 1<<30:
		f.remedy = "an image may not fit; free some space, or put the store elsewhere (--root)"
	}
	return f
}

func tryDrivers(dir string) (found []finding, works bool, err error) {
	all, err := fs.Probe(dir)
	if err != nil {
		return nil, false, err
	}
	for _, s := range all {
		f := finding{what: "driver " + string(s.Driver), is: "works"}
		if s.Err != nil {
			f.is = strings.ReplaceAll(s.Err.Error(), "\n", "; ")
			f.remedy = "another driver takes its place where one works"
			if os.Geteuid() != 0 && s.Driver != fs.TreeFUSE {
				f.remedy = "it needs root; the driver tree does not"
			}
		}
		works = works || s.Err == nil
		found = append(found, f)
	}
	return found, works, nil
}

// maxSkew is how far clocks may be apart before tokens are refused.
const maxSkew = time.Minute

func registryFindings(c *cli.Context, ref string) ([]finding, error) {
	client, err := transfer.New(transfer.Options{PlainHTTP: c.Bool("plain-http"), CAFile: c.String("ca-file"), Attempts: 2})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.Context, 20*time.Second)
	defer cancel()
	image := func() finding {
		if _, err := client.Resolve(ctx, ref); err != nil {
			return finding{"image " + ref, "cannot be read", err.Error()}
		}
		return finding{what: "image " + ref, is: "can be read"}
	}
	host, ahead, err := client.Ping(ctx, ref)
	if host == "" && err == nil { // it is on disk
		return []finding{image()}, nil
	} else if host == "" {
		return nil, err
	}
	f := finding{what: "registry " + host, is: "answers"}
	if err != nil {
		f.is, f.remedy = err.Error(), "check the name, the network, a proxy; --plain-http and --ca-file are for registries of one's own"
		return []finding{f}, nil
	}
	clock := finding{what: "clock", is: "agrees with the registry's"}
	if ahead.Abs() > maxSkew {
		where := "ahead"
		if ahead < 0 {
			where = "behind"
		}
		clock.is = fmt.Sprintf("the registry's is %v %s", ahead.Abs().Round(time.Minute), where)
		clock.remedy = "certificates and tokens will be refused: set the clock, for example by chrony"
	}
	return []finding{f, clock, image()}, nil
}
