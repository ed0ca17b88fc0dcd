package main

import (
	"fmt"
	"io"
	"runtime"
	"text/template"

	"github.com/peelfs/peel/snapshotter"
)

// containerdText is what belongs into containerd's configuration, version 3.
var containerdText = template.Must(template.New("containerd").Parse(`version = 3

# The snapshotter itself.
[proxy_plugins.peel]
  type = "snapshot"
  address = "{{.Address}}"
  capabilities = [{{if .RemapIDs}}"remap-ids"{{end}}]
  [proxy_plugins.peel.exports]
    root = "{{.Root}}"
    enable_remote_snapshot_annotations = "true"

# ctr image pull --snapshotter peel, and every client of the transfer service.
[plugins."io.containerd.transfer.v1.local"]
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "{{.Platform}}"
    snapshotter = "peel"

# Kubernetes (CRI).
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "peel"
  disable_snapshot_annotations = false
  use_local_image_pull = true
`))

// containerdConfig prints it.
func containerdConfig(w io.Writer, cfg config) error {
	remap, why := snapshotter.SupportsIDMap(cfg.Root)
	if !remap {
		fmt.Fprintf(w, "# No remap-ids, since mounts cannot be ID-mapped here: %v\n", why)
	}
	platform := cfg.Platform
	if platform == "" {
		platform = runtime.GOOS + "/" + runtime.GOARCH
	}
	return containerdText.Execute(w, map[string]any{
		"Address": cfg.Address, "Root": cfg.Root, "Platform": platform, "RemapIDs": remap,
	})
}
