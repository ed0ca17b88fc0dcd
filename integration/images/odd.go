package images

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// capNetRaw is the value of security.capability after "setcap cap_net_raw+ep":
// version 2 with the effective bit, permitted set 1<<13 (linux/capability.h).
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"

// addOddities adds one of everything that a layer can hold or do to the layers
// below.
func addOddities(_ context.Context, root string) error {
	at := func(name string) string { return filepath.Join(root, name) }
	long := strings.Repeat("long-name-", 25) // of the 255 bytes that a name may have
	deep := "opt/odd/" + strings.Repeat("deep/", 60)
	old := time.Date(1931, 4, 1, 12, 0, 0, 123456789, time.UTC)
	future := time.Date(2100, 1, 1, 0, 0, 0, 1, time.UTC)

	return errors.Join(
		// Deleted, replaced by an opaque directory, and replaced by another type.
		os.RemoveAll(at("usr/share/doc")),
		os.Remove(at("etc/motd")),
		os.RemoveAll(at("etc/skel")),
		os.Mkdir(at("etc/skel"), 0o750),
		os.WriteFile(at("etc/skel/only"), []byte("the lower layer's files are gone\n"), 0o600),
		os.RemoveAll(at("usr/share/common-licenses")),
		os.Symlink("licenses", at("usr/share/common-licenses")),
		os.RemoveAll(at("usr/bin/perl")),
		os.Mkdir(at("usr/bin/perl"), 0o755),

		// Changed without new contents, and linked to from this layer.
		os.Chmod(at("usr/bin/env"), 0o711),
		os.Lchown(at("usr/bin/factor"), 1000, 1001),
		os.Link(at("usr/bin/yes"), at("usr/bin/also-yes")),

		os.MkdirAll(at("opt/odd"), 0o755),
		os.Chmod(at("opt/odd"), 0o775|os.ModeSticky|os.ModeSetgid),
		os.WriteFile(at("opt/odd/file"), []byte("odd\n"), 0o644),
		os.WriteFile(at("opt/odd/empty"), nil, 0o000),
		os.Link(at("opt/odd/file"), at("opt/odd/link")),
		os.Link(at("opt/odd/file"), at("app/link")),
		os.Symlink("/"+strings.Repeat("nowhere/", 100), at("opt/odd/dangling")),
		os.Link(at("opt/odd/dangling"), at("opt/odd/dangling-link")),
		unix.Mkfifo(at("opt/odd/fifo"), 0o620),
		unix.Mknod(at("opt/odd/char"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(at("opt/odd/block"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 300))),
		os.WriteFile(at("opt/odd/"+long), []byte("long\n"), 0o644),
		os.MkdirAll(at(deep), 0o700),
		os.WriteFile(at(deep+"file"), []byte("deep\n"), 0o644),
		os.WriteFile(at("opt/odd/größe-尺寸"), []byte("utf-8\n"), 0o644),
		os.WriteFile(at("opt/odd/ space\nand newline"), []byte("name\n"), 0o644),
		sparse(at("opt/odd/sparse")),

		os.WriteFile(at("opt/odd/setuid"), []byte("#!/bin/sh\n"), 0o755),
		os.Lchown(at("opt/odd/setuid"), 1234, 5678),
		os.Chmod(at("opt/odd/setuid"), 0o755|os.ModeSetuid|os.ModeSetgid),
		os.WriteFile(at("opt/odd/ping"), []byte("#!/bin/sh\n"), 0o755),
		unix.Lsetxattr(at("opt/odd/ping"), "security.capability", []byte(capNetRaw), 0),
		unix.Lsetxattr(at("opt/odd/file"), "user.binary", []byte("a\x00b=c\n"), 0),
		unix.Lsetxattr(at("opt/odd"), "user.on-a-directory", []byte("x"), 0),
		unix.Lsetxattr(at("opt/odd/dangling"), "trusted.on-a-symlink", []byte("x"), 0),

		os.Chtimes(at("opt/odd/file"), old, old),
		os.Chtimes(at("opt/odd/empty"), future, future),
		os.Chtimes(at("opt/odd"), old, old),
	)
}

// sparse writes a file of 1 MiB with two islands of data.
func sparse(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err1 := f.WriteAt([]byte("start"), 0)
	_, err2 := f.WriteAt([]byte("middle"), 600_000)
	return errors.Join(err1, err2, f.Truncate(1<<20))
}
