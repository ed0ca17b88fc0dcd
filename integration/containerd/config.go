package containerd

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/template"
)

var (
	//go:embed config.toml
	configText string
	//go:embed snapshotter.toml
	snapshotterText string

	configTemplate      = template.Must(template.New("config.toml").Parse(configText))
	snapshotterTemplate = template.Must(template.New("snapshotter.toml").Parse(snapshotterText))
)

// Snapshotter is one that containerd keeps images and containers with. The zero
// value is its own overlayfs.
type Snapshotter struct {
	Name         string
	Address      string       // the socket of a proxy plugin; empty if containerd has it built in
	Root         string       // where a proxy plugin keeps its files
	Capabilities []string     // what a proxy plugin claims to do: "remap-ids"
	Text         string       // the configuration, if it is not to be made of the above
	Stop         func() error // ends a proxy plugin; Close calls it when containerd has ended; may be nil
}

// Config returns the part of containerd's configuration that makes it use the
// snapshotter, for its command line and for Kubernetes. It is a whole file,
// that another may import.
func (s Snapshotter) Config() string {
	if s.Text != "" {
		return s.Text
	}
	s.Name = s.name()
	return execute(snapshotterTemplate, struct {
		Snapshotter
		Arch string
	}{s, runtime.GOARCH})
}

func (s Snapshotter) name() string {
	if s.Name == "" {
		return "overlayfs"
	}
	return s.Name
}

// writeConfig writes the configuration of a containerd that keeps everything
// below dir, so that it does not meet another one of the machine.
func writeConfig(dir string, o Options) (file string, err error) {
	text := execute(configTemplate, struct{ Dir, Pause string }{dir, o.Pause})
	if err := os.WriteFile(filepath.Join(dir, "snapshotter.toml"), []byte(o.Snapshotter.Config()), 0o644); err != nil {
		return "", err
	}
	file = filepath.Join(dir, "config.toml")
	return file, os.WriteFile(file, []byte(text), 0o644)
}

// execute fills in a template. An error would be a mistake in this package.
func execute(t *template.Template, data any) string {
	var text strings.Builder
	if err := t.Execute(&text, data); err != nil {
		panic(err)
	}
	return text.String()
}

// PlainHTTP makes Kubernetes' pulls from a registry go without TLS. Its address
// is as in "127.0.0.1:5000".
func (c *Containerd) PlainHTTP(registry string) error {
	dir := filepath.Join(c.dir, "certs.d", registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("server = %q\n", "http://"+registry)
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644)
}
