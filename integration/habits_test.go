package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
)

// space is a mount namespace of its own, in which a test can change what the
// machine has.
type space struct{ pid int }

// newSpace makes one and runs a shell script in it.
func newSpace(t *testing.T, setup string) *space {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "sh", "-euc", setup+"\necho ready\nexec cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	if line != "ready\n" {
		t.Fatalf("set up a mount namespace: %s", &stderr)
	}
	return &space{cmd.Process.Pid}
}

// run runs a command in the namespace, and returns what it prints.
func (s *space) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	args = append([]string{fmt.Sprintf("--mount=/proc/%d/ns/mnt", s.pid), "--"}, args...)
	cmd := exec.CommandContext(t.Context(), "nsenter", args...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must is run for what has to work.
func (s *space) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.run(t, args...)
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return out
}

// refused runs what has to fail with an exit status, and to say why.
func (s *space) refused(t *testing.T, status int, says string, args ...string) {
	t.Helper()
	out, err := s.run(t, args...)
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != status || !strings.Contains(out, says) {
		t.Errorf("%q gives %v, want exit status %d and %q:\n%s", args, err, status, says, out)
	}
}

// install runs make install into a folder below dir.
func install(t *testing.T, dir string) (dest string) {
	t.Helper()
	dest = filepath.Join(dir, "dest")
	for _, target := range []string{"install", "uninstall", "install"} {
		out, err := exec.CommandContext(t.Context(), "make", "-C", "..", "PREFIX=/usr", "DESTDIR="+dest, target).CombinedOutput()
		if err != nil {
			t.Fatalf("make %s: %v\n%s", target, err, out)
		}
		left, err := exec.CommandContext(t.Context(), "find", dest, "!", "-type", "d").Output()
		if n := bytes.Count(left, []byte("\n")); err != nil || (n == 0) != (target == "uninstall") {
			t.Errorf("after make %s there are %d files, %v:\n%s", target, n, err, left)
		}
	}
	return dest
}

// mount(8), umount(8) and /etc/fstab work with peel as with any file system.
func TestMountHelper(t *testing.T) {
	img := made(t, images.Python)
	repo := push(t, img, true)
	n := newNode(t, link.Options{})
	dir := filepath.Dir(n.mnt)
	dest := install(t, dir)
	if to, err := os.Readlink(filepath.Join(dest, "sbin/mount.peel")); err != nil || to != "/usr/bin/peel" {
		t.Fatalf("mount.peel leads to %q, %v", to, err)
	}
	s := newSpace(t, fmt.Sprintf(`mkdir %[1]s/sbin "%[1]s/a dir"
		ln -s %[2]s/usr/bin/peel %[1]s/sbin/mount.peel
		mount --bind %[1]s/sbin "$(readlink -f /sbin)"
		printf '%%s\n' '%[3]s %[1]s/a\040dir peel ro,root=%[4]s,platform=linux/%[5]s,_netdev,noauto,nofail,x-test 0 0' >%[1]s/fstab
		`, dir, dest, n.image(repo), n.Root, goarch()))
	options := "root=" + n.Root
	for _, driver := range []string{"erofs", "tree"} {
		s.must(t, "mount", "-t", "peel", "-o", options+",nosuid,nodev,noexec,noatime,driver="+driver, n.image(repo), n.mnt)
		flags := strings.Fields(s.must(t, "findmnt", "--noheadings", "--output", "VFS-OPTIONS", n.mnt))
		for _, want := range []string{"ro", "nosuid", "nodev", "noexec", "noatime"} {
			if len(flags) != 1 || !strings.Contains(","+flags[0]+",", ","+want+",") {
				t.Errorf("by %s the mount is not %s: %s", driver, want, flags)
			}
		}
		if out := s.must(t, "cat", n.mnt+"/etc/debian_version"); !strings.HasPrefix(out, "12") {
			t.Errorf("/etc/debian_version is %q", out)
		}
		s.refused(t, 126, "ermission denied", n.mnt+"/bin/true")
		s.must(t, "mount", "-t", "peel", "-o", options, n.image(repo), n.mnt) // as mount -a does
		s.refused(t, 32, "already", "mount", "-t", "peel", "-o", options, n.image(repo+"-other"), n.mnt)
		s.must(t, "umount", n.mnt)
	}
	s.must(t, "mount", "--fstab", dir+"/fstab", dir+"/a dir") // at once after the other umount
	s.must(t, "test", "-d", dir+"/a dir/etc")
	s.must(t, "umount", dir+"/a dir")

	s.must(t, "mount", "-t", "peel", "-o", options+",scratch", n.image(repo), n.mnt)
	s.must(t, "touch", n.mnt+"/new")
	s.must(t, "umount", n.mnt)
	s.must(t, "mount", "-t", "peel", "-o", options+",rw", n.image(repo), n.mnt) // as mount(8) always says
	s.refused(t, 1, "Read-only", "touch", n.mnt+"/new")
	s.refused(t, 1, "mount it anew", "mount", "-o", "remount,noexec", "-t", "peel", n.image(repo), n.mnt)
	s.must(t, "umount", n.mnt)

	s.refused(t, 1, `"bogus"`, "mount", "-t", "peel", "-o", options+",bogus", n.image(repo), n.mnt)
	s.refused(t, 32, "want auto", "mount", "-t", "peel", "-o", options+",driver=bogus", n.image(repo), n.mnt)
	s.refused(t, 32, "404", "mount", "-t", "peel", "-o", options, n.image("nothing"), n.mnt)
	s.must(t, "mount", "--fake", "-t", "peel", "-o", options, n.image("nothing"), n.mnt)
	if out := s.must(t, rig.peel, "--root", n.Root, "status"); !strings.Contains(out, "nothing is mounted") {
		t.Errorf("in the end: %s", out)
	}
}

func goarch() string {
	out, err := exec.Command("go", "env", "GOARCH").Output()
	if err != nil {
		return "amd64"
	}
	return strings.TrimSpace(string(out))
}

// An ordinary user mounts through fusermount3.
func TestOrdinaryUser(t *testing.T) {
	img := made(t, images.Python)
	repo := push(t, img, true)
	n := newNode(t, link.Options{})
	dir := filepath.Dir(n.mnt)
	// The device may be root's alone on this machine, and the program out of
	// others' reach.
	s := newSpace(t, fmt.Sprintf(`mknod -m 666 %[1]s/fuse c 10 229
		mount --bind %[1]s/fuse /dev/fuse
		chmod 755 %[1]s
		cp %[2]s %[1]s/peel.bin
		mkdir %[1]s/home %[1]s/data %[1]s/roots
		chown nobody %[1]s/home %[1]s/data %[3]s
		mkdir %[1]s/sbin
		ln -s %[1]s/peel.bin %[1]s/sbin/mount.peel
		mount --bind %[1]s/sbin "$(readlink -f /sbin)"
		echo %[4]s %[3]s peel user,noauto,root=%[1]s/home/fstab 0 0 >%[1]s/fstab
		mount --bind %[1]s/fstab /etc/fstab`, dir, rig.peel, n.mnt, n.image(repo)))
	user := func(args ...string) []string {
		return append([]string{"setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups",
			"env", "-i", "PATH=/usr/bin:/bin", "HOME=" + dir + "/home"}, args...)
	}
	peel := func(args ...string) []string { return user(append([]string{dir + "/peel.bin"}, args...)...) }

	s.must(t, peel("mount", n.image(repo), n.mnt)...)
	flags := s.must(t, "findmnt", "--noheadings", "--output", "FSTYPE,VFS-OPTIONS", n.mnt)
	if !regexp.MustCompile(`^fuse\.peel +ro,nosuid,nodev,`).MatchString(flags) {
		t.Errorf("the mount is %s", flags)
	}
	if out := s.must(t, user("cat", n.mnt+"/etc/debian_version")...); !strings.HasPrefix(out, "12") {
		t.Errorf("/etc/debian_version is %q", out)
	}
	s.refused(t, 1, "ermission denied", user("head", "-c1", n.mnt+"/dev/zero")...) // no device
	s.refused(t, 1, "ermission denied", user("cat", n.mnt+"/etc/shadow")...)       // as the image says
	s.refused(t, 2, "ermission denied", "ls", n.mnt)                               // the user's alone
	s.refused(t, 1, "Read-only", user("touch", n.mnt+"/tmp/new")...)               // of all the world
	if out := s.must(t, peel("status")...); !strings.Contains(out, "serving") || !strings.Contains(out, "tree") {
		t.Errorf("status: %s", out)
	}
	if _, err := os.Stat(dir + "/home/.local/share/peel/layers"); err != nil {
		t.Error(err)
	}
	s.must(t, peel("umount", n.mnt)...)

	s.must(t, user("XDG_DATA_HOME="+dir+"/data", dir+"/peel.bin", "mount", "-o", "noexec", n.image(repo), n.mnt)...)
	s.refused(t, 126, "ermission denied", user(n.mnt+"/bin/true")...)
	if _, err := os.Stat(dir + "/data/peel/layers"); err != nil {
		t.Error(err)
	}
	s.must(t, user("XDG_DATA_HOME="+dir+"/data", dir+"/peel.bin", "umount", n.mnt)...)

	s.must(t, user("mount", n.mnt)...) // with the option user in /etc/fstab
	s.refused(t, 126, "ermission denied", user(n.mnt+"/bin/true")...)
	s.must(t, user("umount", n.mnt)...)

	for _, driver := range []string{"erofs", "loop"} {
		s.refused(t, 1, "--driver "+driver+" needs root", peel("mount", "--driver", driver, n.image(repo), n.mnt)...)
	}
	s.refused(t, 1, "needs root", peel("mount", "--rw", n.image(repo), n.mnt)...)
	s.refused(t, 1, "need root", peel("mount", "-o", "noatime", n.image(repo), n.mnt)...)
	s.refused(t, 1, "folder of their own", peel("mount", n.image(repo), dir+"/roots")...)
	s.must(t, "chmod", "600", "/dev/fuse")
	s.refused(t, 1, "chmod 666 /dev/fuse", peel("mount", n.image(repo), n.mnt)...)
	s.refused(t, 1, "chmod 666 /dev/fuse", peel("doctor")...)
	s.must(t, "sh", "-euc", fmt.Sprintf(`umount /dev/fuse
		mkdir %[1]s/up %[1]s/work
		mount -t overlay -o lowerdir=/usr/bin,upperdir=%[1]s/up,workdir=%[1]s/work none /usr/bin
		rm -f /usr/bin/fusermount3 /usr/bin/fusermount`, dir))
	s.refused(t, 1, "install the package fuse3", peel("mount", n.image(repo), n.mnt)...)
	s.refused(t, 1, "apt-get install fuse3", peel("doctor")...)
}

// progress is what peel mount --json prints, a line for each.
type progress struct {
	Work              string
	Done, Total       int64
	Mounted, Complete bool
}

// With --wait the image is there at once, and in the end all of it.
func TestMountWait(t *testing.T) {
	const rate = 200e6 // bits a second, so that progress has something to show
	img := made(t, images.Python)
	n := newNode(t, link.Options{Rate: rate, RTT: 20 * time.Millisecond})
	repo := push(t, img, true)
	began := time.Now()
	out, err := n.Run(t.Context(), "mount", "--wait", "--json", n.image(repo), n.mnt)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Cleanup(func() { n.umount(t) })
	var lines []progress
	for line := range strings.Lines(out) {
		var p progress
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		lines = append(lines, p)
	}
	if len(lines) < 3 || !lines[0].Mounted || !lines[len(lines)-1].Complete || lines[1].Total == 0 {
		t.Errorf("printed %s", out)
	}
	size := compressed(t, img)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	requests, most := len(blobs(n.link)), int(size>>23)+6*len(layers) // pieces of 8 MiB, and indices
	t.Logf("%d bytes in %v, which the link takes %v for, by %d requests for blobs", size, took.Round(time.Millisecond),
		time.Duration(float64(size*8)/rate*1e9).Round(time.Millisecond), requests)
	if requests > most {
		t.Errorf("%d requests for blobs, want at most %d", requests, most)
	}
	if got, most := n.link.Received(), size*105/100; got > most {
		t.Errorf("%d bytes came, want at most %d", got, most)
	}
	if err := n.link.Close(); err != nil {
		t.Fatal(err)
	}
	sameTree(t, n, img)
}

// waiting is a peel mount --wait whose image is mounted.
func (n *node) waiting(t *testing.T, repo string) (cmd *exec.Cmd, stderr *bytes.Buffer) {
	t.Helper()
	cmd, stderr = n.Command(t.Context(), "mount", "--wait", "--json", n.image(repo), n.mnt), new(bytes.Buffer)
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || !strings.Contains(line, `"mounted":true`) {
		t.Fatalf("%q, %v; %s", line, err, stderr)
	}
	return cmd, stderr
}

// An interrupt ends the wait, and not the mount; the end of the mount ends the
// wait.
func TestMountWaitInterrupted(t *testing.T) {
	img := made(t, images.Python)
	repo := push(t, img, true)
	n := newNode(t, link.Options{Rate: 20e6})
	cmd, stderr := n.waiting(t, repo)
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != 130 || !strings.Contains(stderr.String(), "stays mounted on "+n.mnt) {
		t.Errorf("%v: %s", err, stderr)
	}
	if got := n.link.Received(); got > compressed(t, img)/2 {
		t.Errorf("%d bytes came before the interrupt", got)
	}
	mustRead(t, filepath.Join(n.mnt, "etc"))
	n.umount(t)

	cmd, stderr = n.waiting(t, repo)
	n.umount(t)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "was unmounted before") {
		t.Errorf("unmounted while it waits: %v: %s", err, stderr)
	}
}

// What a shell would offer for a line, in real shells.
func TestShellCompletion(t *testing.T) {
	img := made(t, images.Python)
	n := newNode(t, link.Options{})
	n.mount(t, push(t, img, true))
	dest := install(t, filepath.Dir(n.mnt))
	ref := n.image(push(t, img, true))
	bash := `. "$1/usr/share/bash-completion/completions/peel"
		COMP_LINE=$2 COMP_POINT=${#2} COMP_WORDBREAKS="$3"
		$(complete -p peel | sed 's/.*-F \([^ ]*\) .*/\1/')
		printf '%s\n' "${COMPREPLY[@]}"`
	zsh := `compdef() {}
		compadd() { print -l -- ${(P)2} }
		source $1/usr/share/zsh/site-functions/_peel
		words=("${(@s: :)2}") CURRENT=$#words
		_peel`
	shells := map[string]func(line string) *exec.Cmd{
		"bash": func(line string) *exec.Cmd { return exec.Command("bash", "-c", bash, "bash", dest, line, " =") },
		"zsh": func(line string) *exec.Cmd {
			return exec.Command("zsh", "-fc", zsh, "zsh", dest, line)
		},
		"fish": func(line string) *exec.Cmd {
			return exec.Command("fish", "--no-config", "-c", "source $argv[1]/usr/share/fish/vendor_completions.d/peel.fish; complete -C $argv[2]", dest, line)
		},
	}
	for shell, command := range shells {
		for line, want := range map[string]string{
			"umo":                                 "umount",
			"mount --dri":                         "--driver",
			"mount --driver er":                   "erofs",
			"--root " + n.Root + " umount ":       n.mnt,
			"--root " + n.Root + " ls " + ref[:9]: ref,
			"cache ver":                           "verify",
		} {
			cmd := command("peel " + line)
			cmd.Env = append(os.Environ(), "PATH="+dest+"/usr/bin:"+os.Getenv("PATH"), "HOME="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != want {
				t.Errorf("%s offers %q for %q, want %q (%v)", shell, out, line, want, err)
			}
		}
	}
	// Where a colon ends words, bash puts what is offered behind it.
	cmd := exec.Command("bash", "-c", bash, "bash", dest, "peel --root "+n.Root+" ls "+strings.TrimSuffix(ref, "test"), " =:")
	cmd.Env = append(os.Environ(), "PATH="+dest+"/usr/bin:"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "latest" {
		t.Errorf("behind the colon of %s bash offers %q (%v)", ref, out, err)
	}
}

// To an archive nothing can be attached, which is said before it is read.
func TestPushToArchive(t *testing.T) {
	img := made(t, images.Python)
	n := newNode(t, link.Options{})
	archive := filepath.Join(filepath.Dir(n.mnt), "image.tar")
	if out, err := exec.CommandContext(t.Context(), "skopeo", "copy", "--insecure-policy", "oci:"+img.Layout+":"+images.Tag, "oci-archive:"+archive).CombinedOutput(); err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	_, err := n.Run(t.Context(), "index", "--push", "oci-archive:"+archive)
	if err == nil || !strings.Contains(err.Error(), "skopeo copy") {
		t.Errorf("peel index --push of an archive: %v", err)
	}
	if layers, err := filepath.Glob(filepath.Join(n.Root, "layers", "*")); err != nil || len(layers) > 0 {
		t.Errorf("layers were indexed all the same: %q, %v", layers, err)
	}
}
