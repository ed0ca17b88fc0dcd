package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Backing is how the kernel reaches an image and its devices.
type Backing uint8

const (
	Auto Backing = iota // File, and Loop if that fails
	File                // as files: Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE
	Loop                // through loop devices, one for each file
)

// String returns the name that a person sees.
func (b Backing) String() string {
	switch b {
	case File:
		return "file"
	case Loop:
		return "loop"
	}
	return "auto"
}

// MountOptions says how to mount. The zero value is good for most.
type MountOptions struct {
	Backing Backing

	// DirectIO lets File read the devices past the page cache of the file
	// system they are on, where that can be done: data is then cached once
	// instead of twice, but large sequential reads are slower the first time.
	// Loop always does so; for it, anything else is slower.
	DirectIO bool
}

// Mount mounts the image, read-only, at the directory dir. The devices are the
// flat blobs, in the order that [Write] was given, and at least as long. It
// returns what Auto came to.
//
// The mount keeps its files open, and loop devices go with it: detaching it
// undoes everything.
func Mount(image string, devices []string, dir string, o MountOptions) (Backing, error) {
	if o.Backing != Auto {
		return o.Backing, mount(image, devices, dir, o)
	}
	o.Backing = File
	ferr := mount(image, devices, dir, o)
	if ferr == nil {
		return File, nil
	}
	o.Backing = Loop
	if err := mount(image, devices, dir, o); err != nil {
		return Auto, fmt.Errorf("%w; %w", ferr, err)
	}
	return Loop, nil
}

func mount(image string, devices []string, dir string, o MountOptions) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("mount EROFS image %s at %s by %s: %w", image, dir, o.Backing, err)
		}
	}()
	if err := checkImage(image, devices); err != nil {
		return err
	}
	// The kernel opens the files again, by name; ours keep loop devices alive
	// until then.
	var names []string
	for i, path := range append([]string{image}, devices...) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if i == 0 {
			// The kernel reads metadata block by block as it needs it, and a
			// walk of the tree needs most. Not every file system takes advice.
			_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_WILLNEED)
		}
		if o.Backing == Loop {
			if f, err = attachLoop(f, i > 0); err != nil {
				return err
			}
			defer f.Close()
		}
		name := f.Name()
		if len(name) > maxParam {
			name = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
		}
		names = append(names, name)
	}
	return mountAt(names, dir, o)
}

// checkImage checks that the file is an image with these devices. The kernel
// would also mount it without any, and take its own bytes for the files' data,
// and would read zeros where a device is too short.
func checkImage(path string, devices []string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var sb superBlock
	if err := binary.Read(io.NewSectionReader(f, superOffset, superBlockSize), binary.LittleEndian, &sb); err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	if sb.Magic != superMagic {
		return errors.New("not an EROFS image")
	}
	if int(sb.ExtraDevices) != len(devices) {
		return fmt.Errorf("image has %d devices, not %d", sb.ExtraDevices, len(devices))
	}
	slots := make([]deviceSlot, len(devices))
	table := io.NewSectionReader(f, int64(sb.DevtSlotoff)*deviceSlotSize, int64(len(slots))*deviceSlotSize)
	if err := binary.Read(table, binary.LittleEndian, slots); err != nil {
		return fmt.Errorf("read device table: %w", err)
	}
	for i, device := range devices {
		info, err := os.Stat(device)
		if err != nil {
			return err
		}
		if want := int64(slots[i].Blocks) * blockSize; info.Size() < want {
			return fmt.Errorf("device %s has %d bytes, not %d", device, info.Size(), want)
		}
	}
	return nil
}

// maxParam is the longest string that fsconfig(2) takes.
const maxParam = 255

// mountAt mounts what is at names, the image first.
func mountAt(names []string, dir string, o MountOptions) error {
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	key := "source"
	for _, name := range names {
		if err := unix.FsconfigSetString(fs, key, name); err != nil {
			return fmt.Errorf("%s=%s: %w", key, name, err)
		}
		key = "device"
	}
	if o.DirectIO && o.Backing == File {
		if err := unix.FsconfigSetFlag(fs, "directio"); err != nil {
			return fmt.Errorf("directio: %w", err)
		}
	}
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return fmt.Errorf("ro: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("fsconfig: %w", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// attachLoop returns a read-only loop device for the file, which may be closed.
// The device goes away when nobody has it open any more.
func attachLoop(back *os.File, direct bool) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	config := unix.LoopConfig{Fd: uint32(back.Fd()), Size: blockSize}
	config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
	if direct {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], back.Name())
	for {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := os.Open(fmt.Sprintf("/dev/loop%d", n))
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if err != unix.EBUSY { // somebody else was faster
			return nil, fmt.Errorf("set up %s for %s: %w", dev.Name(), back.Name(), err)
		}
	}
}
