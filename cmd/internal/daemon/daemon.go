// Package daemon is what peeld says of itself on its status socket, and how to
// ask for it.
package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/transfer"
)

// DefaultState is the folder of a daemon's sockets, if it was told no other.
const DefaultState = "/run/peeld"

// Socket is the path of the status socket of the daemon with a state folder.
func Socket(state string) string { return filepath.Join(state, "status.sock") }

// Status is the answer to /status.
type Status struct {
	PID      int                `json:"pid"`
	Started  time.Time          `json:"started"`
	Root     string             `json:"root"`
	Address  string             `json:"address"`
	NoIDMap  string             `json:"noIDMap,omitempty"` // why layers cannot be shown to user namespaces by ID-mapped mounts
	Images   []Image            `json:"images"`
	Reads    Reads              `json:"reads"`
	Requests int64              `json:"requests"`  // to registries
	BytesIn  int64              `json:"wireBytes"` // from registries
	Traffic  []transfer.Traffic `json:"traffic"`   // the same in parts
}

// Reads are the reads that the kernel has sent for layers that are not complete.
type Reads struct {
	Present uint64 `json:"present"` // found their data here
	Fetched uint64 `json:"fetched"` // had to wait for it
	Failed  uint64 `json:"failed"`
	Waiting int    `json:"waiting"` // wait now
	Stuck   int    `json:"stuck"`   // of these, longer than StuckAfter
}

// StuckAfter is how long a read waits before it counts as stuck: longer than a
// span takes on any usable link. A read_timeout below it leaves none to count.
const StuckAfter = 2 * time.Second

// Image is an image that the daemon knows; the answer to /explain is one.
type Image struct {
	Image   string        `json:"image"`   // as containerd named it
	Digest  digest.Digest `json:"digest"`  // of its manifest
	Bytes   int64         `json:"bytes"`   // of file data; of layers that are not here yet, as the registry has them
	Present int64         `json:"present"` // of these, on this machine
	Layers  []Layer       `json:"layers"`  // lowest first

	Expected bool `json:"expected,omitempty"` // the daemon does not have it: this is what would become of it
}

// Layer says what a layer is, and why.
type Layer struct {
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"` // bytes in the registry
	Kind      Kind          `json:"kind"`
	Why       string        `json:"why"`
	Bytes     int64         `json:"bytes"` // of file data
	Present   int64         `json:"present"`
	Mounts    []string      `json:"mounts,omitempty"`
	Snapshots []string      `json:"snapshots,omitempty"`
	Users     int           `json:"users"` // active snapshots and views above it
}

// Kind is what a layer is to the daemon.
type Kind string

const (
	Lazy     Kind = "lazy"       // fetched as it is read
	Whole    Kind = "read whole" // fetched once, and shown as the lazy ones
	Unpacked Kind = "unpacked"   // a directory on the disk
	Absent   Kind = "not here"   // on its way, or left to containerd
)

// Share is the part of the image's data that is present, from 0 to 1.
func (i Image) Share() float64 {
	if i.Bytes == 0 {
		return 1
	}
	return float64(i.Present) / float64(i.Bytes)
}

// ErrNone says that no daemon answers.
var ErrNone = errors.New("no daemon answers")

// Ask asks the daemon with a state folder for its status.
func Ask(ctx context.Context, state string) (s Status, err error) {
	return s, get(ctx, state, "/status", &s)
}

// Explain asks it what the layers of an image are, or would be.
func Explain(ctx context.Context, state, ref string) (i Image, err error) {
	return i, get(ctx, state, "/explain?image="+url.QueryEscape(ref), &i)
}

// answerTime is how long a daemon may take, which may have to ask a registry.
const answerTime = 30 * time.Second

func get(ctx context.Context, state, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", Socket(state))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://peeld"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if _, gone := os.Stat(Socket(state)); gone != nil {
			return fmt.Errorf("%w: %w", ErrNone, gone)
		}
		return fmt.Errorf("%w: %w", ErrNone, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return json.NewDecoder(resp.Body).Decode(v)
	}
	var msg struct{ Error string }
	if err := json.NewDecoder(resp.Body).Decode(&msg); err != nil || msg.Error == "" {
		return fmt.Errorf("the daemon answers %s", resp.Status)
	}
	return fmt.Errorf("the daemon: %s", msg.Error)
}

// Reply answers with JSON: with v, or the error.
func Reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusConflict)
		v = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // who asked may have gone
}
