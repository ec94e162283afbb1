// Package flockprom reports the locks of a program to Prometheus:
//
//	locks := flockprom.New(nil)
//	prometheus.MustRegister(locks)
//	flockctx.SetTracer(locks.Tracer())
//
// What the tracer is told makes these metrics, by mode ("exclusive" or "shared") and
// mechanism ("flock", "ofd", or "locker"):
//
//   - flockctx_wait_duration_seconds, a histogram of how long each call waited, those that
//     got the lock at once or failed included; also by operation ("lock" or "convert") and
//     outcome ("acquired" or "failed").
//   - flockctx_hold_duration_seconds, a histogram of how long locks were held, from the
//     grant to the release. It has those that were granted while a tracer was set.
//   - flockctx_failures_total, the calls that ended without the lock; also by operation and
//     reason: "locked" (a TryLock found the lock taken), "timeout", "canceled", "closed",
//     "lost" (by Convert, or to the network), "unavailable" (a server) or "other".
//
// And from [flockctx.Snapshot], of files, at the time of the scrape, with a tracer or
// without:
//
//   - flockctx_held_locks, the handles that hold a lock; by mode.
//   - flockctx_waiting_goroutines, the goroutines that wait for a lock; by mode.
//
// So there are few series, however many files are locked; Options.Paths adds the one label
// of which there may be many. All of it is about this process: of others only the time
// that this one waits for them is to be seen.
//
// With [github.com/flockctx/flockctx/locker.Trace] the same is told of locks by name.
//
// LockAll reports each file, and one whose path was replaced while it waited as a failure
// for another reason, after which it waits anew.
package flockprom

import (
	"cmp"
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/observe/internal/figures"
)

// Options says what to report. A nil *Options and the zero value are the defaults. Other
// labels, such as the name of a program, come with [prometheus.WrapRegistererWith].
type Options struct {
	// Paths adds the label path to all metrics: as it was given to flockctx, or the name
	// of a lock by name. Each has series of its own then, for good: for programs that lock few files.
	Paths bool
}

// A Collector holds the metrics. Its methods may be called by several goroutines.
type Collector struct {
	waits, holds  *prometheus.HistogramVec
	failures      *prometheus.CounterVec
	held, waiting *prometheus.Desc
	paths         bool
}

// New returns a collector, which is to be registered, and its tracer set.
func New(o *Options) *Collector {
	if o == nil {
		o = &Options{}
	}
	c := &Collector{paths: o.Paths}
	with := func(labels ...string) []string {
		if c.paths {
			return append(labels, "path")
		}
		return labels
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: figures.Seconds,
		}, with(labels...))
	}
	c.waits = histogram("flockctx_wait_duration_seconds", "How long calls waited for a lock.", "mode", "mechanism", "operation", "outcome")
	c.holds = histogram("flockctx_hold_duration_seconds", "How long locks were held.", "mode", "mechanism")
	c.failures = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "flockctx_failures_total", Help: "Calls that ended without the lock.",
	}, with("mode", "mechanism", "operation", "reason"))
	c.held = prometheus.NewDesc("flockctx_held_locks", "Handles that hold a lock.", with("mode"), nil)
	c.waiting = prometheus.NewDesc("flockctx_waiting_goroutines", "Goroutines that wait for a lock.", with("mode"), nil)
	return c
}

// Tracer returns the tracer that the collector learns from. Set it once, for the process
// or for a handle; where it is set for both everything is counted twice.
func (c *Collector) Tracer() *flockctx.Tracer {
	ended := func(_ context.Context, e flockctx.Event) { c.ended(e) }
	return &flockctx.Tracer{Acquired: ended, Failed: ended, Released: c.released}
}

func (c *Collector) ended(e flockctx.Event) {
	outcome := "acquired"
	if e.Err != nil {
		outcome = "failed"
		reason := cmp.Or(figures.Reason(e), "other")
		c.failures.WithLabelValues(c.with(e.Path, e.Mode.String(), figures.Mechanism(e), e.Op, reason)...).Inc()
	}
	c.waits.WithLabelValues(c.with(e.Path, e.Mode.String(), figures.Mechanism(e), e.Op, outcome)...).Observe(e.Waited.Seconds())
}

func (c *Collector) released(e flockctx.Event) {
	if e.Held != 0 {
		c.holds.WithLabelValues(c.with(e.Path, e.Mode.String(), figures.Mechanism(e))...).Observe(e.Held.Seconds())
	}
}

// with returns the values of a metric's labels, with path where they have that.
func (c *Collector) with(path string, values ...string) []string {
	if c.paths {
		return append(values, figures.Text(path))
	}
	return values
}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	c.waits.Describe(ch)
	c.holds.Describe(ch)
	c.failures.Describe(ch)
	ch <- c.held
	ch <- c.waiting
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.waits.Collect(ch)
	c.holds.Collect(ch)
	c.failures.Collect(ch)
	c.collectHandles(ch)
}

// collectHandles counts the handles as they are now.
func (c *Collector) collectHandles(ch chan<- prometheus.Metric) {
	type group struct {
		path string
		mode flockctx.Mode
	}
	type count struct{ held, waiting int }
	counts := make(map[group]count)
	if !c.paths { // the metrics are there before the first lock
		counts[group{mode: flockctx.Exclusive}] = count{}
		counts[group{mode: flockctx.Shared}] = count{}
	}
	for _, h := range flockctx.Snapshot() {
		g := group{mode: h.Mode}
		if c.paths {
			g.path = figures.Text(h.Path)
		}
		n := counts[g]
		if h.Locked {
			n.held++
		}
		n.waiting += h.Waiting
		counts[g] = n
	}
	for g, n := range counts {
		values := c.with(g.path, g.mode.String())
		ch <- prometheus.MustNewConstMetric(c.held, prometheus.GaugeValue, float64(n.held), values...)
		ch <- prometheus.MustNewConstMetric(c.waiting, prometheus.GaugeValue, float64(n.waiting), values...)
	}
}
