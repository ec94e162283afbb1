package flockdebug_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/flockdebug"
)

// of returns what the page says of path.
func of(locks []lockState, path string) (found []lockState) {
	for _, l := range locks {
		if l.Path == path {
			found = append(found, l)
		}
	}
	return found
}

func TestWhoHoldsAndWhoWaits(t *testing.T) {
	record(t)
	path := filepath.Join(t.TempDir(), "x")
	l := hold(t, path, dispatchJobs)
	wait(t, path, serveJob)
	s := getState(t)
	held, waiting := of(s.Held, path), of(s.Waiting, path)
	if len(held) != 1 || len(waiting) != 1 || s.Recording == nil {
		t.Fatalf("%+v", s)
	}
	h, w := held[0], waiting[0]
	if !strings.HasPrefix(h.Code, "flockdebug_test.dispatchJobs main_test.go:") || h.Mode != "exclusive" || h.Mechanism != "flock" ||
		h.Seconds <= 0 || h.Goroutine == 0 || h.InTheWay != 1 || !strings.Contains(strings.Join(h.Stack, "\n"), "TestWhoHoldsAndWhoWaits") {
		t.Errorf("%+v", h)
	}
	if !strings.HasPrefix(w.Code, "flockdebug_test.serveJob main_test.go:") || w.Op != "lock" || w.Seconds <= 0 || w.Goroutine == 0 || w.Goroutine == h.Goroutine {
		t.Errorf("%+v", w)
	}
	must(t, l.Unlock())
	eventually(t, "the waiter is through", func() bool { s := getState(t); return len(of(s.Waiting, path))+len(of(s.Held, path)) == 0 })

	must(t, l.Lock(t.Context()))
	must(t, l.Convert(t.Context(), flockctx.Shared))
	if held := of(getState(t).Held, path); len(held) != 1 || held[0].Mode != "shared" {
		t.Errorf("%+v", held)
	}
	must(t, l.Close())
	if held := of(getState(t).Held, path); len(held) != 0 {
		t.Errorf("%+v", held)
	}
}

func TestAFailedWaitIsForgotten(t *testing.T) {
	record(t)
	path := filepath.Join(t.TempDir(), "x")
	hold(t, path, dispatchJobs)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- serveJob(ctx, path) }()
	eventually(t, "it waits", func() bool { return len(of(getState(t).Waiting, path)) == 1 })
	cancel()
	<-done
	if w := of(getState(t).Waiting, path); len(w) != 0 {
		t.Errorf("%+v", w)
	}
}

// What began before the recording is shown without code, and ends like anything else.
func TestWhatBeganBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	l := hold(t, path, dispatchJobs)
	wait(t, path, serveJob)
	check := func(recording bool) {
		t.Helper()
		s := getState(t)
		held, waiting := of(s.Held, path), of(s.Waiting, path)
		if len(held) != 1 || len(waiting) != 1 || held[0].Code != "" || waiting[0].Code != "" || (s.Recording != nil) != recording {
			t.Errorf("%+v", s)
		}
	}
	check(false)
	record(t)
	check(true)
	wait(t, path, serveJob)
	if w := of(getState(t).Waiting, path); len(w) != 2 || w[0].Code == "" || w[1].Code != "" {
		t.Errorf("%+v", w)
	}
	must(t, l.Close())
	eventually(t, "both are through", func() bool { s := getState(t); return len(of(s.Waiting, path))+len(of(s.Held, path)) == 0 })
}

func TestStartComposes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	var granted atomic.Int32
	mine := &flockctx.Tracer{Acquired: func(context.Context, flockctx.Event) { granted.Add(1) }}
	defer flockctx.SetTracer(flockctx.SetTracer(mine))
	stop, again := flockdebug.Start(), flockdebug.Start()
	l := hold(t, path, dispatchJobs)
	if granted.Load() != 1 {
		t.Error("the tracer that was set before is not told")
	}
	stop()
	stop()
	if s := getState(t); s.Recording == nil || len(of(s.Held, path)) != 1 || of(s.Held, path)[0].Code == "" {
		t.Errorf("recording ended with the first stop of two: %+v", s)
	}
	again()
	if s := getState(t); s.Recording != nil || flockdebug.Profile().Count() != 0 {
		t.Errorf("recording goes on: %+v", s)
	}
	must(t, l.Close())
	if now := flockctx.SetTracer(mine); now != mine {
		t.Error("the tracer that was set before is not back")
	}
	stop = flockdebug.Start()
	other := &flockctx.Tracer{}
	flockctx.SetTracer(other)
	stop()
	if flockctx.SetTracer(mine) != other {
		t.Error("stop took away a tracer that was set after Start")
	}
}

// A context whose Value panics, as that of a request which its framework has recycled, is
// not asked.
func TestTheContextIsNotAsked(t *testing.T) {
	record(t)
	path := filepath.Join(t.TempDir(), "x")
	l, err := flockctx.Lock(valueless{t.Context()}, path, nil)
	must(t, err)
	must(t, l.Close())
}

type valueless struct{ context.Context }

func (valueless) Value(any) any { panic("recycled") }

func TestProfile(t *testing.T) {
	record(t)
	dir := t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		hold(t, filepath.Join(dir, name), openCache)
	}
	l := hold(t, filepath.Join(dir, "d"), dispatchJobs)
	if n := flockdebug.Profile().Count(); n != 4 {
		t.Errorf("%d locks in the profile, want 4", n)
	}
	w := get(t, "?format=pprof")
	file := filepath.Join(dir, "profile")
	must(t, os.WriteFile(file, w.Body.Bytes(), 0o600))
	must(t, l.Close())
	if n := flockdebug.Profile().Count(); n != 3 {
		t.Errorf("%d locks in the profile after a release, want 3", n)
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("SKIP: go tool pprof: no go command")
	}
	cmd := exec.Command("go", "tool", "pprof", "-top", file)
	cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+dir)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err, problems.String())
	}
	for _, want := range []string{`Type: flockctx\.held`, ` 3 75\.00% .*flockdebug_test\.openCache`, ` 1 25\.00% .*flockdebug_test\.dispatchJobs`} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("go tool pprof -top has no %s:\n%s", want, out)
		}
	}
}
