package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHelperCommand(t *testing.T) {
	for line, want := range map[string]string{
		"IMG DIR":             "peel mount -- IMG DIR",
		"IMG DIR -o rw":       "peel mount -- IMG DIR",
		"-o ro IMG -n DIR":    "peel mount -- IMG DIR",
		"IMG DIR -v -nf -oro": "peel mount -- IMG DIR",
		"-- IMG DIR":          "peel mount -- IMG DIR",
		"IMG DIR -o rw,noexec,nosuid,nodev,platform=linux/arm64,_netdev,user":     "peel mount --platform=linux/arm64 --options=noexec,nosuid,nodev -- IMG DIR",
		"IMG DIR -o root=/r,plain-http -o driver=tree,read-timeout=5s,wait":       "peel --root=/r --plain-http mount --driver=tree --read-timeout=5s --wait -- IMG DIR",
		"IMG DIR -o rw,scratch,noauto,nofail,defaults,x-systemd.automount,user=a": "peel mount --rw -- IMG DIR",
		`IMG DIR -o ca-file="/a,b",exec -t peel`:                                  "peel --ca-file=/a,b mount --options=exec -- IMG DIR",
		"IMG DIR -s -o bogus=1,ro":                                                "peel mount -- IMG DIR",
	} {
		call, err := parseHelper(strings.Fields(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		got, err := call.command()
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %q, %v; want %s", line, got, err, want)
		}
	}
}

func TestHelperRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"IMG":                        "1 names",
		"IMG DIR more":               "3 names",
		"IMG DIR -z":                 "flag -z",
		"IMG DIR -o":                 "-o needs a value",
		"IMG DIR -N 12":              "namespace",
		"IMG DIR -t peel.sub":        "subtypes",
		"IMG DIR -o ro,bogus":        `"bogus"`,
		"IMG DIR -o driver":          "needs a value",
		"IMG DIR -o plain-http=yes":  "takes no value",
		"IMG DIR -o remount,noexec":  "mount it anew",
		"IMG DIR -s -o bind,remount": "mount it anew",
		"IMG DIR -o ro,scratch":      "exclude",
	} {
		call, err := parseHelper(strings.Fields(line))
		if err == nil {
			_, err = call.command()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}

func TestHelperStatus(t *testing.T) {
	for want, err := range map[int]error{1: errUsage, 8: context.Canceled, 32: errors.New("any")} {
		if got := helperStatus(err); got != want {
			t.Errorf("%v is %d, want %d", err, got, want)
		}
	}
}

func TestAttributes(t *testing.T) {
	const sdx = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	for list, want := range map[string]unix.MountAttr{
		"":                               {},
		"nosuid,nodev,noexec":            {Attr_set: sdx},
		"noexec,nosuid,exec":             {Attr_set: unix.MOUNT_ATTR_NOSUID},
		"suid,dev":                       {},
		"noatime":                        {Attr_set: unix.MOUNT_ATTR_NOATIME, Attr_clr: unix.MOUNT_ATTR__ATIME},
		"noatime,nodev,strictatime,exec": {Attr_set: unix.MOUNT_ATTR_STRICTATIME | unix.MOUNT_ATTR_NODEV, Attr_clr: unix.MOUNT_ATTR__ATIME},
	} {
		got, err := parseAttributes(list, true)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", list, got, err, want)
		}
		_, err = parseAttributes(list, false)
		if refused := strings.Contains(list, "atime"); (err != nil) != refused {
			t.Errorf("%q for an ordinary user: %v", list, err)
		}
	}
	if _, err := parseAttributes("nosuid,rw", true); err == nil || !strings.Contains(err.Error(), `"rw"`) {
		t.Errorf("rw: %v", err)
	}
}

func TestComplete(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	s := sessionFor(root, dir)
	lock, err := s.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := s.write(mountInfo{Image: "example.com/app:1", Dir: dir}); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"umo":                       "umount",
		"cache ":                    "df verify rm",
		"cache v":                   "verify",
		"cache x ":                  "",
		"mount --dr":                "--driver",
		"mount --driver ":           "auto erofs loop tree",
		"mount --driver l":          "loop",
		"--log-level w":             "warn",
		"--root /nowhere umount ":   "",
		"--root " + root + " st":    "status stat",
		"--root=" + root + " stat ": "",
		"umount ":                   dir,
		"--plain-http umount /":     dir,
		"completion f":              "fish",
		"--root " + root + " umount " + dir[:len(dir)/2]: dir,
		"--root /a --root " + root + " umount ":          dir,
		"nonsense --driver ":                             "",
		"mount --read-timeout ":                          "",
	} {
		words := strings.Split(line, " ")
		got := complete(newApp(), root, words)
		slices.Sort(got)
		sorted := strings.Fields(want)
		slices.Sort(sorted)
		if !slices.Equal(got, sorted) {
			t.Errorf("%s: %q, want %q", line, got, sorted)
		}
	}
	if got := complete(newApp(), root, nil); len(got) > 0 {
		t.Errorf("of nothing: %q", got)
	}
}

func TestCompleteImages(t *testing.T) {
	s, root := newServer(t), t.TempDir()
	ref := s.host + "/app:1"
	s.push(t, ref, []member{file("a", "a")})
	if out, err := run(t, "--root", root, "ls", ref); err != nil {
		t.Fatal(out, err)
	}
	for line, want := range map[string][]string{
		"ls ":           {ref},
		"mount 127":     {ref},
		"mount x /":     nil,
		"diff " + ref:   {ref},
		"cache rm 127.": {ref},
	} {
		if got := complete(newApp(), root, strings.Split(line, " ")); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}
