package flockprom_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"

	"github.com/flockctx/flockctx"
	flockprom "github.com/flockctx/flockctx/observe/prometheus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// handler returns what serves the metrics of c.
func handler(t testing.TB, c *flockprom.Collector) http.Handler {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	must(t, r.Register(c))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
}

// scrape returns what h serves: as it is, and its samples but for the buckets, the
// durations rounded.
func scrape(t testing.TB, h http.Handler) (text string, samples []string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if text = w.Body.String(); w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, text)
	}
	dec := expfmt.SampleDecoder{
		Dec:  expfmt.NewDecoder(strings.NewReader(text), expfmt.ResponseFormat(w.Header())),
		Opts: &expfmt.DecodeOptions{},
	}
	for {
		var v model.Vector
		if err := dec.Decode(&v); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v in:\n%s", err, text)
		}
		for _, s := range v {
			if !strings.HasSuffix(string(s.Metric["__name__"]), "_bucket") {
				// A waiter of the same process looks again some 100 µs after the release.
				samples = append(samples, fmt.Sprintf("%v %.1f", s.Metric, s.Value))
			}
		}
	}
	slices.Sort(samples)
	return text, samples
}

// want fails unless got are the samples of want, each line one.
func want(t *testing.T, got []string, want string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(want), "\n")
	slices.Sort(lines)
	if !slices.Equal(got, lines) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
	}
}

// A program runs in a bubble and leaves with a lock that is held, one that waits for it,
// and calls that failed. It returns how to end it.
func program(t *testing.T, path string, tracer *flockctx.Tracer) (end func()) {
	o := &flockctx.Options{Tracer: tracer}
	shared := &flockctx.Options{Tracer: tracer, Mode: flockctx.Shared}
	first, err := flockctx.Lock(t.Context(), path, o)
	must(t, err)
	time.AfterFunc(2*time.Second, func() { first.Close() })
	l, err := flockctx.Lock(t.Context(), path, shared) // waits for 2 s
	must(t, err)
	must(t, l.Convert(t.Context(), flockctx.Exclusive))
	flockctx.TryLock(path, shared)
	flockctx.TryLock(filepath.Join(path, "below a file"), o)
	late, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	flockctx.Lock(late, path, shared)
	ctx, gone := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := flockctx.Lock(ctx, path, o)
		done <- err
	}()
	synctest.Wait()
	return func() {
		gone()
		<-done
		must(t, l.Close())
	}
}

func TestAScrape(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file.lock")
	synctest.Test(t, func(t *testing.T) {
		c := flockprom.New(nil)
		h := handler(t, c)
		_, samples := scrape(t, h)
		want(t, samples, `
flockctx_held_locks{mode="exclusive"} 0.0
flockctx_held_locks{mode="shared"} 0.0
flockctx_waiting_goroutines{mode="exclusive"} 0.0
flockctx_waiting_goroutines{mode="shared"} 0.0`)

		end := program(t, path, c.Tracer())
		text, samples := scrape(t, h)
		if problems, err := promlint.New(strings.NewReader(text)).Lint(); err != nil || len(problems) != 0 {
			t.Errorf("promlint: %v %v", problems, err)
		}
		want(t, samples, `
flockctx_failures_total{mechanism="flock", mode="exclusive", operation="lock", reason="other"} 1.0
flockctx_failures_total{mechanism="flock", mode="shared", operation="lock", reason="locked"} 1.0
flockctx_failures_total{mechanism="flock", mode="shared", operation="lock", reason="timeout"} 1.0
flockctx_held_locks{mode="exclusive"} 1.0
flockctx_held_locks{mode="shared"} 0.0
flockctx_hold_duration_seconds_count{mechanism="flock", mode="exclusive"} 1.0
flockctx_hold_duration_seconds_sum{mechanism="flock", mode="exclusive"} 2.0
flockctx_wait_duration_seconds_count{mechanism="flock", mode="exclusive", operation="convert", outcome="acquired"} 1.0
flockctx_wait_duration_seconds_count{mechanism="flock", mode="exclusive", operation="lock", outcome="acquired"} 1.0
flockctx_wait_duration_seconds_count{mechanism="flock", mode="exclusive", operation="lock", outcome="failed"} 1.0
flockctx_wait_duration_seconds_count{mechanism="flock", mode="shared", operation="lock", outcome="acquired"} 1.0
flockctx_wait_duration_seconds_count{mechanism="flock", mode="shared", operation="lock", outcome="failed"} 2.0
flockctx_wait_duration_seconds_sum{mechanism="flock", mode="exclusive", operation="convert", outcome="acquired"} 0.0
flockctx_wait_duration_seconds_sum{mechanism="flock", mode="exclusive", operation="lock", outcome="acquired"} 0.0
flockctx_wait_duration_seconds_sum{mechanism="flock", mode="exclusive", operation="lock", outcome="failed"} 0.0
flockctx_wait_duration_seconds_sum{mechanism="flock", mode="shared", operation="lock", outcome="acquired"} 2.0
flockctx_wait_duration_seconds_sum{mechanism="flock", mode="shared", operation="lock", outcome="failed"} 3.0
flockctx_waiting_goroutines{mode="exclusive"} 1.0
flockctx_waiting_goroutines{mode="shared"} 0.0`)
		if !strings.Contains(text, `flockctx_wait_duration_seconds_bucket{mechanism="flock",mode="shared",operation="lock",outcome="acquired",le="5"} 1`) ||
			!strings.Contains(text, `flockctx_wait_duration_seconds_bucket{mechanism="flock",mode="shared",operation="lock",outcome="acquired",le="1"} 0`) {
			t.Errorf("a wait of 2 s is not in the bucket from 1 to 5 s:\n%s", text)
		}

		end()
		text, _ = scrape(t, h)
		for _, line := range []string{
			`flockctx_failures_total{mechanism="flock",mode="exclusive",operation="lock",reason="canceled"} 1`,
			`flockctx_hold_duration_seconds_count{mechanism="flock",mode="exclusive"} 2`,
			`flockctx_held_locks{mode="exclusive"} 0`,
			`flockctx_waiting_goroutines{mode="exclusive"} 0`,
		} {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("no %s in:\n%s", line, text)
			}
		}
	})
}

// How long a lock was held is unknown where nobody saw the grant, and not zero.
func TestATracerThatCameLater(t *testing.T) {
	c := flockprom.New(nil)
	l, err := flockctx.Lock(t.Context(), filepath.Join(t.TempDir(), "file.lock"), nil)
	must(t, err)
	flockctx.SetTracer(c.Tracer())
	defer flockctx.SetTracer(nil)
	must(t, l.Close())
	if text, _ := scrape(t, handler(t, c)); strings.Contains(text, "duration") {
		t.Error(text)
	}
}

// Paths of any bytes, which the registry refuses, and two that it takes for one.
func TestPathsAreTold(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := flockprom.New(&flockprom.Options{Paths: true})
		h := handler(t, c)
		for _, name := range []string{"a.lock", "\xfe.lock", "\xff.lock"} {
			l, err := flockctx.Lock(t.Context(), filepath.Join(dir, name), &flockctx.Options{Tracer: c.Tracer()})
			if err != nil {
				t.Skipf("SKIP: %s: this file system takes UTF-8 only: %v", t.Name(), err)
			}
			defer l.Close()
		}
		_, samples := scrape(t, h)
		want(t, samples, strings.NewReplacer(`"A"`, `"`+filepath.Join(dir, "a.lock")+`"`, `"B"`, `"`+filepath.Join(dir, "\uFFFD.lock")+`"`).Replace(`
flockctx_held_locks{mode="exclusive", path="A"} 1.0
flockctx_held_locks{mode="exclusive", path="B"} 2.0
flockctx_wait_duration_seconds_count{mechanism="flock", mode="exclusive", operation="lock", outcome="acquired", path="A"} 1.0
flockctx_wait_duration_seconds_count{mechanism="flock", mode="exclusive", operation="lock", outcome="acquired", path="B"} 2.0
flockctx_wait_duration_seconds_sum{mechanism="flock", mode="exclusive", operation="lock", outcome="acquired", path="A"} 0.0
flockctx_wait_duration_seconds_sum{mechanism="flock", mode="exclusive", operation="lock", outcome="acquired", path="B"} 0.0
flockctx_waiting_goroutines{mode="exclusive", path="A"} 0.0
flockctx_waiting_goroutines{mode="exclusive", path="B"} 0.0`))
	})
}

// What it costs a lock that is free, of a kept handle.
func BenchmarkLock(b *testing.B) {
	for name, tracer := range map[string]*flockctx.Tracer{
		"none":      nil,
		"collector": flockprom.New(nil).Tracer(),
		"paths":     flockprom.New(&flockprom.Options{Paths: true}).Tracer(),
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

// What a scrape costs beside many handles.
func BenchmarkScrape(b *testing.B) {
	dir := b.TempDir()
	for i := range 1000 {
		l, err := flockctx.Lock(b.Context(), filepath.Join(dir, fmt.Sprint(i)), nil)
		must(b, err)
		defer l.Close()
	}
	h := handler(b, flockprom.New(nil))
	for b.Loop() {
		scrape(b, h)
	}
}
