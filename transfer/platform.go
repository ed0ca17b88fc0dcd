package transfer

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// platform is an operating system and a processor, in the one of several
// spellings that containerd also prefers.
type platform struct{ os, arch, variant string }

func (p platform) String() string {
	return strings.TrimSuffix(p.os+"/"+p.arch+"/"+p.variant, "/")
}

func hostPlatform() string { return runtime.GOOS + "/" + runtime.GOARCH }

func parsePlatform(s string) (platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return platform{}, fmt.Errorf("platform %q is not os/arch or os/arch/variant, as in linux/arm64/v8", s)
	}
	parts = append(parts, "")
	return newPlatform(parts[0], parts[1], parts[2]), nil
}

// newPlatform brings the spellings of a platform down to one.
func newPlatform(os, arch, variant string) platform {
	p := platform{strings.ToLower(os), strings.ToLower(arch), strings.ToLower(variant)}
	if p.variant != "" && p.variant[0] >= '0' && p.variant[0] <= '9' {
		p.variant = "v" + p.variant
	}
	switch p.arch {
	case "x86_64", "x86-64":
		p.arch = "amd64"
	case "i386":
		p.arch = "386"
	case "aarch64":
		p.arch = "arm64"
	case "armhf":
		p.arch, p.variant = "arm", "v7"
	case "armel":
		p.arch, p.variant = "arm", "v6"
	}
	p.variant = strings.TrimSuffix(p.variant, ".0")
	switch p.arch + "/" + p.variant {
	case "amd64/v1", "arm64/v8":
		p.variant = ""
	case "arm/":
		p.variant = "v7"
	}
	return p
}

// acceptable returns the platforms whose images run on p, best first: p
// itself, then older variants, then the 32-bit ones. The order is containerd's.
func (p platform) acceptable() []platform {
	list := []platform{p}
	add := func(arch, variant string) {
		list = append(list, newPlatform(p.os, arch, variant))
	}
	version := strings.TrimPrefix(p.variant, "v")
	switch p.arch {
	case "amd64":
		n, _ := strconv.Atoi(version)
		for n--; n >= 1; n-- {
			add("amd64", "v"+strconv.Itoa(n))
		}
		add("386", "")
	case "arm":
		n, _ := strconv.Atoi(version)
		for n--; n >= 5; n-- {
			add("arm", "v"+strconv.Itoa(n))
		}
	case "arm64":
		major, minor, _ := strings.Cut(version, ".")
		n, _ := strconv.Atoi(minor)
		for m := n - 1; m >= 0; m-- {
			add("arm64", fmt.Sprintf("v%s.%d", major, m))
		}
		if major == "9" { // Armv9.n includes Armv8.(n+5)
			for m := min(n+5, 9); m >= 0; m-- {
				add("arm64", fmt.Sprintf("v8.%d", m))
			}
		}
		for m := 8; m >= 5; m-- {
			add("arm", "v"+strconv.Itoa(m))
		}
	}
	return list
}

// choose returns the entry of an index that suits best one of the platforms.
// An entry that names no platform is taken if no other suits. If there is
// none at all, the error lists what there is.
func choose(entries []ocispec.Descriptor, platforms []platform) (ocispec.Descriptor, error) {
	best, rank := -1, len(platforms)+1
	var names []string
	for i, d := range entries {
		if d.Platform == nil {
			if rank > len(platforms) && (isIndexType(d.MediaType) || isImageType(d.MediaType)) {
				best, rank = i, len(platforms)
			}
			continue
		}
		p := newPlatform(d.Platform.OS, d.Platform.Architecture, d.Platform.Variant)
		if p.os == "unknown" {
			continue // an attestation, not an image
		}
		names = append(names, p.String())
		for r, want := range platforms[:min(rank, len(platforms))] {
			if p == want {
				best, rank = i, r
				break
			}
		}
	}
	if best >= 0 {
		return entries[best], nil
	}
	if len(names) == 0 {
		return ocispec.Descriptor{}, errors.New("the index lists no image")
	}
	return ocispec.Descriptor{}, fmt.Errorf("no image for %s; there is one for %s: choose another platform",
		platforms[0], strings.Join(names, ", "))
}
