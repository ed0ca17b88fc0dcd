package parts

import (
	"strings"
	"testing"
)

func TestBuiltProgramsRun(t *testing.T) {
	ctx := t.Context()
	registry, err := Registry(ctx)
	if err != nil {
		t.Fatal(err)
	}
	containerd, err := Containerd(ctx)
	if err != nil {
		t.Fatal(err)
	}
	peel, err := Peel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ program, arg, want string }{
		{registry, "--version", "registry"},
		{containerd + "/containerd", "--version", "containerd"},
		{containerd + "/ctr", "--version", "ctr"},
		{containerd + "/containerd-shim-runc-v2", "-v", "containerd-shim-runc-v2"},
		{peel, "--help", "mount"},
	}
	for _, test := range tests {
		out, err := output(ctx, test.program, test.arg)
		if err != nil || !strings.Contains(out, test.want) {
			t.Errorf("%s %s printed %q, %v, want %q", test.program, test.arg, out, err, test.want)
		}
	}
}

func TestErrorsNameTheCommand(t *testing.T) {
	_, err := build(t.Context(), "example.invalid/no/such/module", "", "nothing")
	if err == nil || !strings.Contains(err.Error(), "example.invalid/no/such/module") {
		t.Errorf("got error %v, want one that names the module", err)
	}
}
