// Package cache keeps what is slow to make, such as images and built programs,
// in a folder of the user's from one run to the next.
//
// It knows names and folders. It does not know what is in them, and never
// deletes what is complete: that is for the user to do.
package cache

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Root returns the folder of everything cached: peel in the user's cache
// folder, which $XDG_CACHE_HOME moves.
func Root() (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(user, "peel"), nil
}

// Dir returns the cached folder of that name below Root, which may have
// several elements. If there is none, make fills an empty one, and the folder
// gets its name only once make has returned without an error. Of several
// processes that want the same folder at once, one makes it and the others
// wait. The name must change whenever what make does changes.
func Dir(name string, make func(dir string) error) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	return dir(filepath.Join(root, filepath.FromSlash(name)), make)
}

func dir(path string, make func(dir string) error) (string, error) {
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(path + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil // another process made it while this one waited
	}
	// What a killed process left is safe to delete: whoever makes holds the lock.
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := make(tmp); err != nil {
		return "", fmt.Errorf("make %s: %w", path, err)
	}
	return path, os.Rename(tmp, path)
}

// lock takes an exclusive lock, waiting for it, and returns what gives it back.
// The kernel gives it back too when the process dies.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
