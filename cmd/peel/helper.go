package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/peelfs/peel/transfer"
)

// helperName is the name under which mount(8) calls this program for a file
// system of the type peel:
//
//	mount.peel SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE.SUBTYPE]
const helperName = "mount.peel"

// helperStatus is the exit status of an error, as mount(8) has them.
func helperStatus(err error) int {
	switch {
	case errors.Is(err, errUsage):
		return 1
	case errors.Is(err, context.Canceled):
		return 8
	}
	return 32
}

// errUsage is wrapped by errors about what mount.peel was called with.
var errUsage = errors.New("wrong usage")

func runHelper(ctx context.Context) error {
	call, err := parseHelper(os.Args[1:])
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	args, err := call.command()
	if err != nil {
		return fmt.Errorf("mount %s on %s: %w: %w", call.spec, call.dir, errUsage, err)
	}
	if call.verbose {
		fmt.Fprintf(os.Stderr, "%s: %q\n", helperName, args)
	}
	if call.fake || call.done() {
		return nil
	}
	os.Args = args // for the process that stays, too
	return newApp().RunContext(ctx, args)
}

// helperCall is what mount(8) asks for.
type helperCall struct {
	spec, dir string
	options   []string
	sloppy    bool // options that nobody knows are ignored
	fake      bool // everything but the mount itself
	verbose   bool
}

// parseHelper reads the arguments. Flags may stand anywhere among them.
func parseHelper(args []string) (*helperCall, error) {
	call := &helperCall{}
	var names []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			names = append(names, args...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			names = append(names, arg)
			continue
		}
		var err error
		if args, err = call.flags(arg[1:], args); err != nil {
			return nil, err
		}
	}
	if len(names) != 2 {
		return nil, fmt.Errorf("%d names, and it takes 2: %s IMAGE DIR [-sfnv] [-o OPTIONS]", len(names), helperName)
	}
	call.spec, call.dir = names[0], names[1]
	return call, nil
}

// done reports whether the image is mounted there already. mount -a cannot see
// it, since the kernel has other names for what is mounted, and asks again.
func (h *helperCall) done() bool {
	root := cmp.Or(os.Getenv("PEEL_ROOT"), defaultRoot())
	for _, o := range h.options {
		if dir, ok := strings.CutPrefix(o, "root="); ok {
			root = dir
		}
	}
	ref, err := transfer.FullReference(h.spec)
	dir, err2 := mountPoint(h.dir)
	if err != nil || err2 != nil {
		return false // peel mount says what is wrong
	}
	s := sessionFor(root, dir)
	info, err := s.info()
	return err == nil && info.Image == ref && s.alive() && isMountPoint(dir)
}

// flags reads one word of flags. A value is the rest of the word, or the first
// of args; it returns what is left of them.
func (h *helperCall) flags(word string, args []string) ([]string, error) {
	for i, f := range word {
		switch f {
		case 's':
			h.sloppy = true
		case 'f':
			h.fake = true
		case 'v':
			h.verbose = true
		case 'n': // there is no /etc/mtab to write
		case 'o', 't', 'N':
			value := word[i+1:]
			if value == "" {
				if len(args) == 0 {
					return nil, fmt.Errorf("-%c needs a value", f)
				}
				value, args = args[0], args[1:]
			}
			return args, h.value(f, value)
		default:
			return nil, fmt.Errorf("unknown flag -%c", f)
		}
	}
	return args, nil
}

func (h *helperCall) value(flag rune, value string) error {
	switch flag {
	case 'o':
		h.options = append(h.options, splitOptions(value)...)
	case 't':
		if value != "peel" {
			return fmt.Errorf("type %s: peel has no subtypes", value)
		}
	case 'N':
		return errors.New("-N: peel cannot serve a mount in another namespace; run mount there, with nsenter")
	}
	return nil
}

// splitOptions splits a list at its commas. Quotes keep those of a value.
func splitOptions(list string) []string {
	quoted := false
	fields := strings.FieldsFunc(list, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return r == ',' && !quoted
	})
	for i, f := range fields {
		fields[i] = strings.ReplaceAll(f, `"`, "")
	}
	return fields
}

// optionKind is what is to be done with an option.
type optionKind int

const (
	optUnknown    optionKind = iota
	optIgnored               // it is for mount(8), systemd or fsck
	optGlobal                // a flag of peel
	optFlag                  // a flag of peel mount
	optValued     = 1 << 4   // with a value
	optGlobalWith = optGlobal | optValued
	optFlagWith   = optFlag | optValued
)

// optionKinds are peel's own options, and those that mean nothing here. mount(8)
// says rw even where nobody has asked for it, so it cannot stand for a scratch
// overlay, in which writes are lost; that is what scratch is for.
var optionKinds = map[string]optionKind{
	"root": optGlobalWith, "ca-file": optGlobalWith, "log-level": optGlobalWith, "plain-http": optGlobal,
	"driver": optFlagWith, "platform": optFlagWith, "read-timeout": optFlagWith, "wait": optFlag, "scratch": optFlag,
	"rw": optIgnored, "ro": optIgnored, "defaults": optIgnored, "auto": optIgnored, "noauto": optIgnored, "nofail": optIgnored,
	"nouser": optIgnored, "noowner": optIgnored, "nogroup": optIgnored, "async": optIgnored, "_netdev": optIgnored,
	"loud": optIgnored, "silent": optIgnored, "comment": optIgnored,
	// mount(8) itself adds the nosuid,nodev,noexec that these imply.
	"user": optIgnored, "users": optIgnored, "owner": optIgnored, "group": optIgnored,
}

// command returns the peel command that does what was asked for.
func (h *helperCall) command() ([]string, error) {
	if slices.Contains(h.options, "ro") && slices.Contains(h.options, "scratch") {
		return nil, errors.New("the options ro and scratch exclude each other")
	}
	globals, flags, attrs := []string{"peel"}, []string{"mount"}, []string{}
	for _, o := range h.options {
		name, value, given := strings.Cut(o, "=")
		if _, ok := attributes[o]; ok {
			attrs = append(attrs, o)
			continue
		}
		kind, err := h.kind(name, given)
		if err != nil {
			return nil, fmt.Errorf("option %q: %w", o, err)
		}
		word := "--" + name
		if given {
			word += "=" + value
		}
		if name == "scratch" {
			word = "--rw"
		}
		switch kind &^ optValued {
		case optGlobal:
			globals = append(globals, word)
		case optFlag:
			flags = append(flags, word)
		}
	}
	if len(attrs) > 0 {
		flags = append(flags, "--options="+strings.Join(attrs, ","))
	}
	return append(slices.Concat(globals, flags), "--", h.spec, h.dir), nil
}

// kind returns what an option is, given with a value or without.
func (h *helperCall) kind(name string, withValue bool) (optionKind, error) {
	kind := optionKinds[name]
	switch {
	case strings.HasPrefix(name, "x-"), strings.HasPrefix(name, "X-"), kind == optIgnored:
		return optIgnored, nil
	case name == "remount", name == "bind", name == "rbind", name == "move":
		return optUnknown, errors.New("what is mounted stays as it is; unmount it, and mount it anew")
	case kind == optUnknown && h.sloppy:
		return optIgnored, nil
	case kind == optUnknown:
		return optUnknown, errors.New("there is none of this name; peel mount --help lists them")
	case kind&optValued != 0 && !withValue:
		return optUnknown, errors.New("it needs a value")
	case kind&optValued == 0 && withValue:
		return optUnknown, errors.New("it takes no value")
	}
	return kind, nil
}
