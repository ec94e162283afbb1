package flockdebug_test

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/flockctx/flockctx"
)

// wantCycles fails unless the page shows cycles of the files alone, each as their names.
func wantCycles(t *testing.T, s state, want ...[]string) {
	t.Helper()
	var got []string
	for _, c := range s.Cycles {
		var names []string
		for _, n := range c {
			if filepath.IsAbs(n) {
				names = append(names, filepath.Base(n))
			}
		}
		slices.Sort(names)
		got = append(got, strings.Join(names, " "))
	}
	slices.Sort(got)
	var wanted []string
	for _, c := range want {
		wanted = append(wanted, strings.Join(c, " "))
	}
	if !slices.Equal(got, wanted) {
		t.Errorf("cycles %q, want %q", s.Cycles, want)
	}
}

func TestACycleOverTwoFiles(t *testing.T) {
	record(t)
	dir := t.TempDir()
	cycle(t, filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	s := getState(t)
	wantCycles(t, s, []string{"a", "b"})
	if len(s.Cycles[0]) != 4 || !strings.HasPrefix(s.Cycles[0][0], "goroutine ") {
		t.Errorf("%q", s.Cycles)
	}
}

func TestACycleThroughAnotherProcess(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("who holds a lock elsewhere is told on Linux only")
	}
	record(t)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	ctx, cancel := context.WithCancel(t.Context())
	began, goOn, done := make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	defer func() {
		cancel()
		<-done
	}()
	go func() {
		defer close(done)
		l, err := flockctx.Lock(ctx, a, nil)
		began <- struct{}{}
		if err != nil {
			return
		}
		defer l.Close()
		<-goOn
		if m, err := flockctx.Lock(ctx, b, nil); err == nil {
			m.Close()
		}
	}()
	<-began
	pid := startOther(t, []string{b, a}, "rsync")
	close(goOn)
	var s state
	eventually(t, "the page shows it", func() bool {
		s = getState(t)
		return len(s.Cycles) > 0
	})
	wantCycles(t, s, []string{"a", "b"})
	if !slices.Contains(s.Cycles[0], fmt.Sprint("pid ", pid)) {
		t.Errorf("%q lacks pid %d", s.Cycles, pid)
	}
}

// One that waits to convert its own lock waits for the others that share it.
func TestAConversionIsNoCycle(t *testing.T) {
	record(t)
	path := filepath.Join(t.TempDir(), "x")
	hold(t, path, openCache)
	wait(t, path, func(ctx context.Context, path string) error {
		l, err := openCache(path)
		if err != nil {
			return err
		}
		defer l.Close()
		return l.Convert(ctx, flockctx.Exclusive)
	})
	s := getState(t)
	if w := of(s.Waiting, path); len(w) != 1 || w[0].Op != "convert" || w[0].Mode != "exclusive" {
		t.Errorf("%+v", w)
	}
	wantCycles(t, s)
}

// A goroutine that waits for what it holds waits for ever.
func TestAGoroutineInItsOwnWay(t *testing.T) {
	record(t)
	path := filepath.Join(t.TempDir(), "x")
	wait(t, path, func(ctx context.Context, path string) error {
		l, err := dispatchJobs(path)
		if err != nil {
			return err
		}
		defer l.Close()
		return serveJob(ctx, path)
	})
	wantCycles(t, getState(t), []string{"x"})
}

// Who holds another range is not in the way.
func TestRangesApart(t *testing.T) {
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("no byte ranges")
	}
	record(t)
	path := filepath.Join(t.TempDir(), "x")
	part := func(start int64) *flockctx.Options {
		return &flockctx.Options{Mechanism: flockctx.OFD, Start: start, Length: 10}
	}
	take := func(start int64) func(string) (*flockctx.Flock, error) {
		return func(path string) (*flockctx.Flock, error) { return flockctx.TryLock(path, part(start)) }
	}
	hold(t, path, take(0))
	hold(t, path, take(10))
	wait(t, path, func(ctx context.Context, path string) error {
		_, err := flockctx.Lock(ctx, path, part(10))
		return err
	})
	var inTheWay []string
	for _, h := range of(getState(t).Held, path) {
		inTheWay = append(inTheWay, fmt.Sprint(h.Start, ":", h.InTheWay))
	}
	slices.Sort(inTheWay)
	if want := []string{"0:0", "10:1"}; !slices.Equal(inTheWay, want) {
		t.Errorf("in the way are %q, want %q", inTheWay, want)
	}
	if body := get(t, "").Body.String(); !strings.Contains(body, "bytes 10–19") {
		t.Error("the page does not say which bytes")
	}
}
