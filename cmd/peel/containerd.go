package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/peelfs/peel/cmd/internal/daemon"
	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v2"
)

// containerdDefault is where containerd's configuration is, if it was told
// nothing else.
const containerdDefault = "/etc/containerd/config.toml"

// containerdConfig is what of containerd's configuration decides whether it
// uses the snapshotter.
type containerdConfig struct {
	Version      int
	Imports      []string
	ProxyPlugins map[string]proxyPlugin `toml:"proxy_plugins"`
	Plugins      struct {
		Transfer struct {
			Unpack []struct{ Platform, Snapshotter string } `toml:"unpack_config"`
		} `toml:"io.containerd.transfer.v1.local"`
		Images  *criImages `toml:"io.containerd.cri.v1.images"`
		Runtime struct {
			Containerd struct{ Runtimes map[string]ofRuntime }
		} `toml:"io.containerd.cri.v1.runtime"`
	}
	whole bool // with defaults and imported files, as containerd itself tells it
}

type proxyPlugin struct {
	Type, Address string
	Capabilities  []string
	Exports       map[string]string
}

type criImages struct {
	Snapshotter        string
	DisableAnnotations *bool                `toml:"disable_snapshot_annotations"`
	DiscardLayers      bool                 `toml:"discard_unpacked_layers"`
	Runtimes           map[string]ofRuntime `toml:"runtime_platforms"`
}

// ofRuntime is what a runtime has of its own.
type ofRuntime struct{ Snapshotter string }

// readContainerd reads the configuration that containerd runs with: what it
// says itself, or a file. found is false if there is no containerd.
func readContainerd(ctx context.Context, file string) (cfg containerdConfig, from string, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var raw []byte
	program, lookErr := exec.LookPath("containerd")
	switch {
	case lookErr == nil && file == "":
		from, cfg.whole = "containerd config dump", true
		raw, err = exec.CommandContext(ctx, program, "config", "dump").Output()
	case lookErr == nil:
		from, cfg.whole = "containerd --config "+file+" config dump", true
		raw, err = exec.CommandContext(ctx, program, "--config", file, "config", "dump").Output()
	default:
		from = file
		if file == "" {
			from = containerdDefault
		}
		if raw, err = os.ReadFile(from); file == "" && errors.Is(err, fs.ErrNotExist) {
			return cfg, from, false, nil
		}
	}
	if err == nil {
		err = toml.Unmarshal(raw, &cfg)
	}
	if err != nil {
		return cfg, from, false, fmt.Errorf("read containerd's configuration (%s): %w", from, err)
	}
	return cfg, from, true, nil
}

// containerdFindings says whether containerd would use the daemon.
func containerdFindings(c *cli.Context) ([]finding, error) {
	cfg, from, found, err := readContainerd(c.Context, c.String("containerd-config"))
	if err != nil {
		return []finding{{"containerd", err.Error(), "repair it, or name the file that containerd is started with: --containerd-config FILE"}}, nil
	}
	if !found {
		return []finding{{"containerd", "not here: no program in the PATH, and no " + from, ""}}, nil
	}
	st, err := askDaemon(c)
	if err != nil {
		return nil, err
	}
	return append([]finding{{"containerd", "configured by " + from, ""}}, cfg.check(st, c.String("state"))...), nil
}

// tell is the remedy for what is missing.
const tell = "peeld config containerd prints what belongs into containerd's configuration"

// check says what is in the way of the snapshotter. st is nil if no daemon
// answers.
func (cfg *containerdConfig) check(st *daemon.Status, state string) []finding {
	if !cfg.whole && cfg.Version < 3 {
		return []finding{{"containerd configuration", fmt.Sprintf("version %d, which is not understood here", cfg.Version), "containerd config migrate makes it a newer one"}}
	}
	address := filepath.Join(state, "peeld.sock")
	if st != nil {
		address = st.Address
	}
	name, plugin, found := cfg.proxy(address)
	all := []finding{found}
	if found.remedy != "" && plugin.Type == "" {
		return all
	}
	all = append(all, plugin.check(st)...)
	all = append(all, cfg.checkUnpack(name))
	return append(all, cfg.checkCRI(name)...)
}

// proxy finds the daemon's plugin: by its address, or failing that by its name.
func (cfg *containerdConfig) proxy(address string) (name string, p proxyPlugin, f finding) {
	f.what = "containerd proxy plugin"
	for _, name := range slices.Sorted(maps.Keys(cfg.ProxyPlugins)) {
		if p := cfg.ProxyPlugins[name]; p.Address == address {
			f.is = fmt.Sprintf("%s, at %s", name, address)
			if p.Type != "snapshot" {
				f.is, f.remedy = fmt.Sprintf("%s has the type %q", name, p.Type), `type = "snapshot"`
			}
			return name, p, f
		}
	}
	if p, ok := cfg.ProxyPlugins["peel"]; ok {
		f.is = fmt.Sprintf("peel has the address %q, and peeld's is %q", p.Address, address)
		f.remedy = fmt.Sprintf("address = %q, or --state DIR here if another peeld is meant", address)
		return "peel", p, f
	}
	f.is, f.remedy = "missing: containerd does not know peeld", tell
	return "peel", p, f
}

// check looks at what the plugin tells containerd's other parts.
func (p proxyPlugin) check(st *daemon.Status) (all []finding) {
	f := finding{what: "containerd exports", is: "layers' origins are told"}
	if p.Exports["enable_remote_snapshot_annotations"] != "true" {
		f.is = "the transfer service does not tell layers' origins, so it downloads all of them"
		f.remedy = `[proxy_plugins.peel.exports] enable_remote_snapshot_annotations = "true"`
	}
	all = append(all, f)
	if slices.Contains(p.Capabilities, "rebase") {
		all = append(all, finding{"containerd capabilities", "rebase, which makes containerd write wrong whiteouts for layers that are there already", `take "rebase" out of capabilities`})
	}
	if slices.Contains(p.Capabilities, "remap-ids") && st != nil && st.NoIDMap != "" {
		all = append(all, finding{"containerd capabilities", "remap-ids, which does not work here: " + st.NoIDMap, `take "remap-ids" out of capabilities`})
	}
	return all
}

// checkUnpack looks at what the transfer service unpacks into.
func (cfg *containerdConfig) checkUnpack(name string) finding {
	f := finding{what: "containerd unpack_config"}
	platform := runtime.GOOS + "/" + runtime.GOARCH
	var others []string
	for _, u := range cfg.Plugins.Transfer.Unpack {
		if u.Snapshotter != name {
			continue
		}
		if u.Platform == runtime.GOOS || u.Platform == platform || strings.HasPrefix(u.Platform, platform+"/") {
			f.is = u.Platform + " by " + name
			return f
		}
		others = append(others, u.Platform)
	}
	f.is = fmt.Sprintf("none of the snapshotter %s for %s, so ctr image pull downloads and unpacks nothing for it", name, platform)
	if len(others) > 0 {
		f.is += " (only for " + strings.Join(others, ", ") + ")"
	}
	f.remedy = fmt.Sprintf(`[[plugins."io.containerd.transfer.v1.local".unpack_config]] platform = %q, snapshotter = %q`, platform, name)
	return f
}

// checkCRI looks at what Kubernetes gets.
func (cfg *containerdConfig) checkCRI(name string) []finding {
	images := cfg.Plugins.Images
	if images == nil {
		if cfg.whole {
			return []finding{{"containerd CRI", "not built in", ""}}
		}
		images = &criImages{}
	}
	const section = `[plugins."io.containerd.cri.v1.images"] `
	snapshotter := finding{what: "containerd CRI snapshotter", is: images.Snapshotter}
	if images.Snapshotter != name {
		if images.Snapshotter == "" {
			snapshotter.is = "containerd's default"
		}
		snapshotter.is += ", so Kubernetes does not use peeld"
		snapshotter.remedy = fmt.Sprintf("%ssnapshotter = %q", section, name)
	}
	annotations := finding{what: "containerd CRI annotations", is: "layers' origins are told"}
	if images.DisableAnnotations == nil || *images.DisableAnnotations { // which is the default
		annotations.is = "disabled, so the CRI plugin's own pull downloads every layer"
		annotations.remedy = section + "disable_snapshot_annotations = false"
	}
	all := []finding{snapshotter, annotations}
	if images.DiscardLayers {
		all = append(all, finding{"containerd CRI layers", "discard_unpacked_layers: what containerd downloads for layers left to it is fetched again when an image is pushed or unpacked anew", ""})
	}
	for _, of := range []struct {
		section  string
		runtimes map[string]ofRuntime
	}{
		{`plugins."io.containerd.cri.v1.runtime".containerd.runtimes`, cfg.Plugins.Runtime.Containerd.Runtimes},
		{`plugins."io.containerd.cri.v1.images".runtime_platforms`, images.Runtimes},
	} {
		for _, r := range slices.Sorted(maps.Keys(of.runtimes)) {
			if other := of.runtimes[r].Snapshotter; other != "" && other != name {
				all = append(all, finding{"containerd runtime " + r, fmt.Sprintf("has the snapshotter %s of its own, so its pods do not use peeld", other),
					fmt.Sprintf("[%s.%s] snapshotter = %q", of.section, r, name)})
			}
		}
	}
	return all
}
