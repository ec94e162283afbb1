package flockotel_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
	flockotel "github.com/flockctx/flockctx/observe/otel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A backend keeps in memory what a tracer reports.
type backend struct {
	spans   *tracetest.InMemoryExporter
	traces  *sdktrace.TracerProvider
	metrics *sdkmetric.ManualReader
	tracer  *flockctx.Tracer
}

func newBackend(paths bool) *backend {
	b := &backend{spans: tracetest.NewInMemoryExporter(), metrics: sdkmetric.NewManualReader()}
	b.traces = sdktrace.NewTracerProvider(sdktrace.WithSyncer(b.spans))
	b.tracer = flockotel.Tracer(&flockotel.Options{
		TracerProvider: b.traces,
		MeterProvider:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(b.metrics)),
		Paths:          paths,
	})
	return b
}

// request returns a context with a span, as that of a request has.
func (b *backend) request(t *testing.T) (context.Context, trace.Span) {
	return b.traces.Tracer("test").Start(t.Context(), "request")
}

// collect returns the metrics by name.
func (b *backend) collect(t *testing.T) map[string]metricdata.Metrics {
	t.Helper()
	var all metricdata.ResourceMetrics
	must(t, b.metrics.Collect(t.Context(), &all))
	metrics := make(map[string]metricdata.Metrics)
	for _, s := range all.ScopeMetrics {
		for _, m := range s.Metrics {
			metrics[m.Name] = m
		}
	}
	return metrics
}

// A series is one of a histogram: how many there were, and their sum. That is rounded: a
// waiter of the same process looks again some 100 µs after the release.
type series struct {
	count uint64
	sum   time.Duration
}

func rounded(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

// durations returns the series of a histogram of seconds by their attributes.
func (b *backend) durations(t *testing.T, name string) map[string]series {
	t.Helper()
	m := b.collect(t)[name]
	h, ok := m.Data.(metricdata.Histogram[float64])
	if !ok || m.Unit != "s" || m.Description == "" {
		t.Fatalf("%s is %+v, want a histogram of s", name, m)
	}
	found := make(map[string]series)
	for _, p := range h.DataPoints {
		if p.Bounds[0] != 1e-4 {
			t.Errorf("%s has the bounds %v", name, p.Bounds)
		}
		found[p.Attributes.Encoded(attribute.DefaultEncoder())] = series{p.Count, rounded(time.Duration(p.Sum * 1e9))}
	}
	return found
}

// failures returns the counter's series by their attributes.
func (b *backend) failures(t *testing.T) map[string]int64 {
	t.Helper()
	m := b.collect(t)["flockctx.failures"]
	c, ok := m.Data.(metricdata.Sum[int64])
	if !ok || m.Unit != "{failure}" || !c.IsMonotonic {
		t.Fatalf("flockctx.failures is %+v, want a counter", m)
	}
	found := make(map[string]int64)
	for _, p := range c.DataPoints {
		found[p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Value
	}
	return found
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want[V comparable](t *testing.T, what string, got, want map[string]V) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("%s:\n%v\nwant\n%v", what, got, want)
	}
}

func tempPath(t *testing.T) string { return filepath.Join(t.TempDir(), "file.lock") }

func attributes(s tracetest.SpanStub) map[string]string {
	m := make(map[string]string)
	for _, a := range s.Attributes {
		m[string(a.Key)] = a.Value.String()
	}
	return m
}

func TestAWaitIsAChildOfTheCallersSpan(t *testing.T) {
	path := tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(false)
		ctx, request := b.request(t)
		o := &flockctx.Options{Tracer: b.tracer}
		holder, err := flockctx.Lock(ctx, path, o)
		must(t, err)
		if got := b.spans.GetSpans(); len(got) != 0 {
			t.Fatalf("a lock that was free made spans, or ended the caller's: %v", got)
		}
		start := time.Now()
		time.AfterFunc(2*time.Second, func() { holder.Unlock() })
		l, err := flockctx.Lock(ctx, path, o)
		must(t, err)
		time.Sleep(3 * time.Second)
		must(t, l.Close())
		must(t, holder.Close())
		request.End()

		got := b.spans.GetSpans()
		if len(got) != 2 || got[0].Name != "flockctx.wait" || got[1].Name != "request" {
			t.Fatalf("spans: %+v", got)
		}
		wait := got[0]
		if wait.Parent.SpanID() != request.SpanContext().SpanID() || wait.SpanKind != trace.SpanKindInternal {
			t.Errorf("not a child of the request's span: %+v", wait)
		}
		if !wait.StartTime.Equal(start) || rounded(wait.EndTime.Sub(wait.StartTime)) != 2*time.Second || wait.Status.Code != codes.Unset {
			t.Errorf("%v for %v, %v", wait.StartTime, wait.EndTime.Sub(wait.StartTime), wait.Status)
		}
		want(t, "attributes", attributes(wait), map[string]string{
			"file.path": path, "flockctx.operation": "lock", "flockctx.mode": "exclusive", "flockctx.mechanism": "flock",
		})
		want(t, "waits", b.durations(t, "flockctx.wait.duration"), map[string]series{
			"flockctx.mechanism=flock,flockctx.mode=exclusive,flockctx.operation=lock": {2, 2 * time.Second},
		})
		want(t, "holds", b.durations(t, "flockctx.hold.duration"), map[string]series{
			"flockctx.mechanism=flock,flockctx.mode=exclusive": {2, (2 + 3) * time.Second},
		})
		if m, ok := b.collect(t)["flockctx.failures"]; ok {
			t.Errorf("failures: %+v", m)
		}
	})
}

func TestAFailureSaysWhy(t *testing.T) {
	path := tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(false)
		ctx, request := b.request(t)
		defer request.End()
		o := &flockctx.Options{Tracer: b.tracer, Mode: flockctx.Shared}
		holder, err := flockctx.Lock(t.Context(), path, nil)
		must(t, err)

		late, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, timeout := flockctx.Lock(late, path, o)
		gone, cancel := context.WithCancel(ctx)
		time.AfterFunc(3*time.Second, cancel)
		_, canceled := flockctx.Lock(gone, path, o)
		flockctx.TryLock(path, o)
		flockctx.TryLock(filepath.Join(path, "below a file"), o)
		l := flockctx.New(path, o)
		time.AfterFunc(4*time.Second, func() { l.Close() })
		closed := l.Lock(ctx)
		must(t, holder.Close())

		var got []tracetest.SpanStub = b.spans.GetSpans()
		var reasons, descriptions []string
		for _, s := range got {
			if s.Status.Code != codes.Error || s.Parent.SpanID() != request.SpanContext().SpanID() {
				t.Errorf("%+v", s)
			}
			reasons = append(reasons, attributes(s)["error.type"])
			descriptions = append(descriptions, s.Status.Description)
		}
		if want := []string{"timeout", "canceled", "closed"}; !slices.Equal(reasons, want) {
			t.Errorf("error.type of the spans: %q, want %q", reasons, want)
		}
		if want := []string{timeout.Error(), canceled.Error(), closed.Error()}; !slices.Equal(descriptions, want) {
			t.Errorf("spans say %q, want %q", descriptions, want)
		}
		with := func(reason string) string {
			return "error.type=" + reason + ",flockctx.mechanism=flock,flockctx.mode=shared,flockctx.operation=lock"
		}
		want(t, "failures", b.failures(t), map[string]int64{
			with("timeout"): 1, with("canceled"): 1, with("locked"): 1, with("closed"): 1, with("_OTHER"): 1,
		})
		want(t, "waits", b.durations(t, "flockctx.wait.duration"), map[string]series{
			with("timeout"): {1, 2 * time.Second}, with("canceled"): {1, 3 * time.Second}, with("locked"): {1, 0}, with("closed"): {1, 4 * time.Second}, with("_OTHER"): {1, 0},
		})
	})
}

func TestConvertIsAnOperationOfItsOwn(t *testing.T) {
	path := tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(false)
		shared := &flockctx.Options{Mode: flockctx.Shared}
		other, err := flockctx.Lock(t.Context(), path, shared)
		must(t, err)
		l, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Mode: flockctx.Shared, Tracer: b.tracer})
		must(t, err)
		time.AfterFunc(time.Second, func() { other.Close() })
		must(t, l.Convert(t.Context(), flockctx.Exclusive))
		must(t, l.Close())
		want(t, "waits", b.durations(t, "flockctx.wait.duration"), map[string]series{
			"flockctx.mechanism=flock,flockctx.mode=shared,flockctx.operation=lock":       {1, 0},
			"flockctx.mechanism=flock,flockctx.mode=exclusive,flockctx.operation=convert": {1, time.Second},
		})
		want(t, "holds", b.durations(t, "flockctx.hold.duration"), map[string]series{"flockctx.mechanism=flock,flockctx.mode=exclusive": {1, time.Second}})
		if s := b.spans.GetSpans(); len(s) != 1 || attributes(s[0])["flockctx.operation"] != "convert" {
			t.Errorf("spans: %+v", s)
		}
	})
}

func TestALockThatConvertLost(t *testing.T) {
	path := tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(false)
		l, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Tracer: b.tracer})
		must(t, err)
		time.Sleep(time.Second)
		must(t, os.Rename(path, path+".old"))
		must(t, os.WriteFile(path, nil, 0o600))
		if err := l.Convert(t.Context(), flockctx.Shared); !errors.Is(err, flockctx.ErrNotLocked) {
			t.Fatalf("%v, want a lost lock", err)
		}
		must(t, l.Close())
		want(t, "failures", b.failures(t), map[string]int64{
			"error.type=lost,flockctx.mechanism=flock,flockctx.mode=shared,flockctx.operation=convert": 1,
		})
		want(t, "holds", b.durations(t, "flockctx.hold.duration"), map[string]series{
			"error.type=lost,flockctx.mechanism=flock,flockctx.mode=exclusive": {1, time.Second},
		})
	})
}

func TestLocksByName(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(true)
		names := locker.Trace(locker.Dir(dir, nil), b.tracer)
		ctx, request := b.request(t)
		defer request.End()
		h, err := names.Lock(ctx, "x", locker.Exclusive)
		must(t, err)
		time.Sleep(time.Second)
		must(t, h.Unlock(ctx))
		synctest.Wait() // for the news of the release
		const with = "flockctx.mechanism=locker,flockctx.mode=exclusive,flockctx.name=x"
		want(t, "holds", b.durations(t, "flockctx.hold.duration"), map[string]series{with: {1, time.Second}})
		want(t, "waits", b.durations(t, "flockctx.wait.duration"), map[string]series{with + ",flockctx.operation=lock": {1, 0}})
		if s := b.spans.GetSpans(); len(s) != 1 || attributes(s[0])["flockctx.name"] != "x" ||
			s[0].Parent.SpanID() != request.SpanContext().SpanID() {
			t.Errorf("spans: %+v", s)
		}
	})
}

// How long a lock was held is unknown where nobody saw the grant, and not zero.
func TestATracerThatCameLater(t *testing.T) {
	b := newBackend(false)
	l, err := flockctx.Lock(t.Context(), tempPath(t), nil)
	must(t, err)
	flockctx.SetTracer(b.tracer)
	defer flockctx.SetTracer(nil)
	must(t, l.Close())
	if m := b.collect(t); len(m) != 0 {
		t.Errorf("metrics: %v", m)
	}
}

// Paths of any bytes, which a protocol of UTF-8 would refuse.
func TestPathsAreTold(t *testing.T) {
	dir := t.TempDir()
	path, clean := filepath.Join(dir, "\xff.lock"), filepath.Join(dir, "\uFFFD.lock")
	synctest.Test(t, func(t *testing.T) {
		holder, err := flockctx.Lock(t.Context(), path, nil)
		if err != nil {
			t.Skipf("SKIP: %s: this file system takes UTF-8 only: %v", t.Name(), err)
		}
		defer holder.Close()
		b := newBackend(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err = flockctx.Lock(ctx, path, &flockctx.Options{Tracer: b.tracer}); err == nil {
			t.Fatal("no error")
		}
		want(t, "failures", b.failures(t), map[string]int64{
			"error.type=timeout,file.path=" + clean + ",flockctx.mechanism=flock,flockctx.mode=exclusive,flockctx.operation=lock": 1,
		})
		s := b.spans.GetSpans()
		if len(s) != 1 || attributes(s[0])["file.path"] != clean || !slices.Contains([]rune(s[0].Status.Description), '\uFFFD') {
			t.Errorf("spans: %+v", s)
		}
	})
}

// Each of two ends its own span, though the second has its in the context of both; and a
// hook that locks with that context does not end the wait.
func TestOneBesideAnother(t *testing.T) {
	path, other := tempPath(t), tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		a, b := newBackend(false), newBackend(false)
		both := flockctx.JoinTracers(a.tracer, b.tracer)
		nosy := &flockctx.Tracer{StillWaiting: func(ctx context.Context, _ flockctx.Event) {
			l, err := flockctx.Lock(ctx, other, &flockctx.Options{Tracer: both})
			must(t, err)
			must(t, l.Close())
		}}
		holder, err := flockctx.Lock(t.Context(), path, nil)
		must(t, err)
		time.AfterFunc(2500*time.Millisecond, func() { holder.Close() })
		l, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Tracer: flockctx.JoinTracers(both, nosy)})
		must(t, err)
		must(t, l.Close())
		for _, x := range []*backend{a, b} {
			s := x.spans.GetSpans()
			if len(s) != 1 || rounded(s[0].EndTime.Sub(s[0].StartTime)) != 2500*time.Millisecond {
				t.Errorf("spans: %+v", s)
			}
		}
	})
}

// Without a provider nothing is reported, and everything works.
func TestNobodyListens(t *testing.T) {
	l, err := flockctx.Lock(t.Context(), tempPath(t), &flockctx.Options{Tracer: flockotel.Tracer(nil)})
	must(t, err)
	must(t, l.Close())
}

// What it costs a lock that is free, of a kept handle.
func BenchmarkLock(b *testing.B) {
	for name, tracer := range map[string]*flockctx.Tracer{
		"none":        nil,
		"no provider": flockotel.Tracer(nil),
		"sdk":         newBackend(false).tracer,
		"sdk, paths":  newBackend(true).tracer,
	} {
		b.Run(name, func(b *testing.B) {
			l := flockctx.New(filepath.Join(b.TempDir(), "file.lock"), &flockctx.Options{Tracer: tracer})
			defer l.Close()
			for b.Loop() {
				must(b, l.Lock(b.Context()))
				must(b, l.Unlock())
			}
		})
	}
}
