package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/cmd/internal/daemon"
	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/snapshotter"
	"github.com/peelfs/peel/transfer"
)

// reporter says what the daemon has and does.
type reporter struct {
	cfg         config
	started     time.Time
	puller      *image.Puller
	snapshotter *snapshotter.Snapshotter
	metrics     *metrics
	noIDMap     string // daemon.Status.NoIDMap
}

// status is the answer to /status.
func (r *reporter) status(ctx context.Context) (daemon.Status, error) {
	st := daemon.Status{
		PID: os.Getpid(), Started: r.started, Root: r.cfg.Root, Address: r.cfg.Address,
		NoIDMap: r.noIDMap,
		Traffic: r.puller.Client.Traffic(),
	}
	for _, t := range st.Traffic {
		st.Requests += t.Requests
		st.BytesIn += t.BytesIn
	}
	counts, waits := r.snapshotter.Reads()
	st.Reads = daemon.Reads{Present: counts.Present, Fetched: counts.Fetched, Failed: counts.Failed, Waiting: len(waits)}
	for _, d := range waits {
		if d > daemon.StuckAfter {
			st.Reads.Stuck++
		}
	}
	var err error
	st.Images, err = r.images(ctx)
	return st, err
}

// images returns the images that the daemon knows, by name.
func (r *reporter) images(ctx context.Context) ([]daemon.Image, error) {
	known, err := r.puller.Store.Images()
	if err != nil {
		return nil, err
	}
	stored, err := r.puller.Store.Layers()
	if err != nil {
		return nil, err
	}
	shown, err := r.snapshotter.Shown(ctx)
	if err != nil {
		return nil, err
	}
	have := map[digest.Digest]content.LayerInfo{}
	for _, l := range stored {
		have[l.Blob] = l
	}
	byLayer := map[digest.Digest][]snapshotter.Shown{}
	names := map[digest.Digest]string{}
	for _, x := range shown {
		byLayer[x.Layer] = append(byLayer[x.Layer], x)
		names[x.Manifest] = x.Image
	}
	all := []daemon.Image{}
	for _, k := range known {
		img, err := transfer.ParseImage(k.Ref, k.Manifest, k.Config)
		if err != nil {
			return nil, err
		}
		out := daemon.Image{Image: k.Ref, Digest: k.Digest}
		if name := names[k.Digest]; name != "" {
			out.Image = name
		}
		for _, l := range img.Layers {
			layer := r.describe(k.Digest, l, have[l.Digest], byLayer[l.Digest])
			out.Bytes += layer.Bytes
			out.Present += layer.Present
			out.Layers = append(out.Layers, layer)
		}
		all = append(all, out)
	}
	slices.SortFunc(all, func(a, b daemon.Image) int {
		return strings.Compare(a.Image+a.Digest.String(), b.Image+b.Digest.String())
	})
	return all, nil
}

// describe says what a layer of an image is: from what the store has of it
// and the snapshots that show it, of this image and of others. have is the zero
// value if the store does not have it.
func (r *reporter) describe(manifest digest.Digest, l transfer.Layer, have content.LayerInfo, shown []snapshotter.Shown) daemon.Layer {
	out := daemon.Layer{Digest: l.Digest, Size: l.Size, Kind: daemon.Absent, Bytes: l.Size}
	if have.Blob != "" {
		out.Bytes, out.Present = have.Bytes, have.Present
	}
	if len(shown) == 0 {
		out.Why = "on its way, or left to containerd: the log says which"
		return out
	}
	first := shown[0]
	for _, x := range shown {
		if x.Manifest == manifest {
			first = x // in another image the same layer may be something else
		}
		out.Snapshots = append(out.Snapshots, x.Snapshot)
		out.Users += x.Users
		if x.Mount != "" && !slices.Contains(out.Mounts, x.Mount) {
			out.Mounts = append(out.Mounts, x.Mount)
		}
	}
	slices.Sort(out.Snapshots)
	slices.Sort(out.Mounts)
	switch {
	case !first.Lazy:
		out.Kind, out.Why = daemon.Unpacked, strings.TrimPrefix(first.How, snapshotter.ErrUnpack.Error()+": ")
		out.Bytes, out.Present = first.Size, first.Size
	case have.ReadWhole():
		why, known := strings.CutPrefix(first.How, readWhole)
		switch {
		case known:
		case l.Size < r.cfg.SmallLayer: // it was here already when the snapshot was made
			why = r.cfg.whySmall(l.Size)
		default:
			why = "it had no index when it came"
		}
		out.Kind, out.Why = daemon.Whole, why
	default:
		out.Kind, out.Why = daemon.Lazy, "index from "+first.How
	}
	return out
}

// explain returns one image, by the name that containerd has for it, or by its
// digest.
func (r *reporter) explain(ctx context.Context, ref string) (daemon.Image, error) {
	full, err := transfer.FullReference(ref)
	if err != nil {
		return daemon.Image{}, err
	}
	all, err := r.images(ctx)
	if err != nil {
		return daemon.Image{}, err
	}
	for _, i := range all {
		named, _ := transfer.FullReference(i.Image)
		if named == full || strings.HasSuffix(full, "@"+i.Digest.String()) {
			return i, nil
		}
	}
	return r.expect(ctx, full)
}

// expect says what would become of the layers of an image that the daemon does
// not have.
func (r *reporter) expect(ctx context.Context, ref string) (daemon.Image, error) {
	img, err := r.puller.Client.Resolve(ctx, ref)
	if err != nil {
		return daemon.Image{}, err
	}
	layers, err := r.puller.Report(ctx, img)
	if err != nil {
		return daemon.Image{}, err
	}
	out := daemon.Image{Image: ref, Digest: img.Digest, Expected: true}
	for i, l := range layers {
		x := daemon.Layer{Digest: l.Digest, Size: l.Size, Bytes: l.Size, Kind: daemon.Lazy, Why: l.Why}
		switch refused := image.Refused(img.Layers[i]); {
		case refused != "":
			x.Kind, x.Why = daemon.Unpacked, refused
		case l.Lazy:
		case r.cfg.Index == indexEager:
			x.Kind, x.Why = daemon.Unpacked, fmt.Sprintf("no index, and index is %q", indexEager)
		default:
			x.Kind = daemon.Whole
		}
		if x.Kind != daemon.Unpacked && l.Size < r.cfg.SmallLayer && l.Format == "" { // Format: the store has it
			x.Kind, x.Why = daemon.Whole, r.cfg.whySmall(l.Size)
		}
		out.Bytes += x.Bytes
		out.Layers = append(out.Layers, x)
	}
	return out, nil
}

// serve answers on the status socket, and Prometheus at the address that the
// configuration says. It ends with stop.
func (r *reporter) serve() (stop func(), err error) {
	if ok, why := snapshotter.SupportsIDMap(r.cfg.Root); !ok {
		r.noIDMap = why.Error()
	}
	r.metrics.all.MustRegister(asked{r})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, req *http.Request) {
		st, err := r.status(req.Context())
		daemon.Reply(w, st, err)
	})
	mux.HandleFunc("GET /explain", func(w http.ResponseWriter, req *http.Request) {
		i, err := r.explain(req.Context(), req.FormValue("image"))
		daemon.Reply(w, i, err)
	})
	mux.Handle("GET /metrics", r.metrics.handler())
	if r.cfg.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	}
	local, err := listen(daemon.Socket(r.cfg.State))
	if err != nil {
		return nil, err
	}
	if r.cfg.Metrics == "" {
		return r.answer([]net.Listener{local}, []http.Handler{mux}), nil
	}
	public, err := net.Listen("tcp", r.cfg.Metrics)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("metrics %q: %w", r.cfg.Metrics, err), local.Close())
	}
	only := http.NewServeMux()
	only.Handle("GET /metrics", r.metrics.handler())
	return r.answer([]net.Listener{local, public}, []http.Handler{mux, only}), nil
}

// answer serves each listener by its handler until stop is called.
func (r *reporter) answer(listeners []net.Listener, handlers []http.Handler) (stop func()) {
	var serving sync.WaitGroup
	var servers []*http.Server
	for i, l := range listeners {
		srv := &http.Server{Handler: handlers[i], ReadHeaderTimeout: 10 * time.Second}
		servers = append(servers, srv)
		serving.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				r.puller.Log.Error("status and metrics are not served any more", "address", l.Addr().String(), "error", err)
			}
		})
	}
	return func() {
		for _, srv := range servers {
			_ = srv.Close() // of who asks at this moment
		}
		serving.Wait()
	}
}
