package main

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
)

// systemd hears when the daemon is ready and when it is ending, in this order.
func TestNotify(t *testing.T) {
	dir := t.TempDir()
	heard, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer heard.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	hear := func() string {
		t.Helper()
		if err := heard.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := heard.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	l, err := listen(filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(filepath.Join(dir, "sock")); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second daemon at the address: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serveUntil(ctx, slog.New(slog.DiscardHandler), grpc.NewServer(), l) }()
	if got := hear(); got != "READY=1" {
		t.Errorf("systemd hears %q first", got)
	}
	cancel()
	if got := hear(); got != "STOPPING=1" {
		t.Errorf("systemd hears %q at the end", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
