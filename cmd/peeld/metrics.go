package main

import (
	"context"
	"net/http"
	"time"

	"github.com/peelfs/peel/cmd/internal/daemon"
	"github.com/peelfs/peel/content"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are what the daemon counts for Prometheus: some as it happens, the
// rest when it is asked. Neither has names of files, nor credentials: the
// labels are registries' hosts, images, and words of ours.
type metrics struct {
	all     *prometheus.Registry
	fetches *prometheus.HistogramVec
	failed  *prometheus.CounterVec
	spans   *prometheus.CounterVec
	started prometheus.Histogram
	starts  *starts
}

func newMetrics() *metrics {
	m := &metrics{
		all: prometheus.NewRegistry(),
		fetches: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "peeld_fetch_seconds", Help: "Fetches of neighbouring spans, or of a whole layer: from the request until the last is in the store.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 15),
		}, []string{"cause"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "peeld_fetch_failures_total", Help: "Fetches that gave an error, when all repetitions had failed.",
		}, []string{"cause"}),
		spans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "peeld_spans_total", Help: "Spans that came and had the digest that the index says (verified), or not (corrupt).",
		}, []string{"result"}),
		started: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "peeld_start_seconds",
			Help: "Starts of containers: from the Prepare of the snapshot to the last data that it waited for before it waited for none for " +
				quietTime.String() + ". A snapshotter does not see the first output itself.",
			Buckets: prometheus.ExponentialBuckets(0.05, 2, 14),
		}),
	}
	m.starts = newStarts(func(d time.Duration) { m.started.Observe(d.Seconds()) })
	for _, c := range []content.Cause{content.Demand, content.ReadAhead, content.Whole, content.Repair} {
		m.fetches.WithLabelValues(string(c)) // so that they are there from the start, as 0
		m.failed.WithLabelValues(string(c))
	}
	for _, result := range []string{"verified", "corrupt"} {
		m.spans.WithLabelValues(result)
	}
	m.all.MustRegister(m.fetches, m.failed, m.spans, m.started,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// fetched is content.Options.Observe.
func (m *metrics) fetched(f content.Fetch) {
	cause := string(f.Cause)
	m.fetches.WithLabelValues(cause).Observe(f.Took.Seconds())
	m.spans.WithLabelValues("verified").Add(float64(f.Spans))
	m.spans.WithLabelValues("corrupt").Add(float64(f.Corrupt))
	if f.Err != nil {
		m.failed.WithLabelValues(cause).Inc()
	}
	if f.Cause == content.Demand {
		m.starts.fetched(f.Layer)
	}
}

// handler answers Prometheus.
func (m *metrics) handler() http.Handler { return promhttp.HandlerFor(m.all, promhttp.HandlerOpts{}) }

// asked is the part of the metrics that is looked up when Prometheus asks.
type asked struct{ *reporter }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("peeld_"+name, help, labels, nil)
}

var (
	wireBytes    = describe("wire_bytes_total", "Bytes of answers from registries, by the registry that was asked and what for.", "registry", "cause")
	wireRequests = describe("wire_requests_total", "Requests to registries, every attempt and redirect counted.", "registry", "cause")
	reads        = describe("reads_total", "Reads by the kernel from layers that are not complete: served locally, fetched, or failed.", "result")
	waiting      = describe("reads_waiting", "Reads that wait for data now.")
	stuck        = describe("reads_stuck", "Reads that have waited for longer than "+daemon.StuckAfter.String()+".")
	present      = describe("image_present_ratio", "The part of an image's file data that is on this machine.", "image", "digest")
	layerCount   = describe("layers", "Layers of the images, each once, by what they are.", "kind")
)

// Describe is that of prometheus.Collector.
func (a asked) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{wireBytes, wireRequests, reads, waiting, stuck, present, layerCount} {
		c <- d
	}
}

// Collect is that of prometheus.Collector.
func (a asked) Collect(c chan<- prometheus.Metric) {
	st, err := a.status(context.Background())
	if err != nil {
		c <- prometheus.NewInvalidMetric(present, err)
		return
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, t := range st.Traffic {
		count(wireBytes, float64(t.BytesIn), t.Registry, t.Purpose)
		count(wireRequests, float64(t.Requests), t.Registry, t.Purpose)
	}
	count(reads, float64(st.Reads.Present), "local")
	count(reads, float64(st.Reads.Fetched), "fetched")
	count(reads, float64(st.Reads.Failed), "failed")
	gauge(waiting, float64(st.Reads.Waiting))
	gauge(stuck, float64(st.Reads.Stuck))
	kinds := map[daemon.Kind]map[string]bool{daemon.Lazy: {}, daemon.Whole: {}, daemon.Unpacked: {}, daemon.Absent: {}}
	for _, i := range st.Images {
		gauge(present, i.Share(), i.Image, i.Digest.String())
		for _, l := range i.Layers {
			kinds[l.Kind][l.Digest.String()] = true
		}
	}
	for kind, layers := range kinds {
		gauge(layerCount, float64(len(layers)), string(kind))
	}
}
