package locker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
)

// A recorder is a tracer that writes down what it is told.
type recorder struct {
	mu     sync.Mutex
	events []string
}

func (r *recorder) add(hook string, e flockctx.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := fmt.Sprint(hook, " ", e.Op, " ", e.Path)
	if e.Waited != 0 {
		s += fmt.Sprint(" waited ", e.Waited)
	}
	if e.Held != 0 {
		s += fmt.Sprint(" held ", e.Held)
	}
	if e.Err != nil {
		s += fmt.Sprint(" lost ", errors.Is(e.Err, locker.ErrLost))
	}
	r.events = append(r.events, s)
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

func (r *recorder) tracer() *flockctx.Tracer {
	hook := func(name string) func(context.Context, flockctx.Event) {
		return func(_ context.Context, e flockctx.Event) { r.add(name, e) }
	}
	return &flockctx.Tracer{
		Waiting:      func(ctx context.Context, e flockctx.Event) context.Context { r.add("Waiting", e); return nil },
		StillWaiting: hook("StillWaiting"), Acquired: hook("Acquired"), Failed: hook("Failed"),
		Released: func(e flockctx.Event) { r.add("Released", e) },
	}
}

// A fake is an engine whose server answers after a time, grants for 9 s, and falls silent.
type fake struct {
	locker.Locker
	takes time.Duration
}

type fakeHeld struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	until  time.Time
}

func (f fake) Lock(ctx context.Context, name string, m locker.Mode) (locker.Held, error) {
	time.Sleep(f.takes)
	h := &fakeHeld{until: time.Now().Add(9 * time.Second)}
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	time.AfterFunc(9*time.Second, func() { h.cancel(fmt.Errorf("silence: %w", locker.ErrLost)) })
	return h, nil
}

func (h *fakeHeld) Context() context.Context     { return h.ctx }
func (h *fakeHeld) Valid() (time.Time, bool)     { return h.until, true }
func (h *fakeHeld) Token() (locker.Token, bool)  { return locker.Token{}, false }
func (h *fakeHeld) Unlock(context.Context) error { h.cancel(locker.ErrReleased); return nil }

func TestTraceTellsOfWaitsRenewalsAndLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		l := locker.Trace(fake{takes: 5 * time.Second}, r.tracer())
		if _, err := l.Lock(t.Context(), "x", locker.Exclusive); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		want := []string{
			"Waiting lock x",
			"StillWaiting lock x waited 1s", "StillWaiting lock x waited 2s", "StillWaiting lock x waited 4s",
			"Acquired lock x waited 5s",
			"StillWaiting renew x waited 4.5s held 4.5s",
		}
		if got := r.all(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got\n%q\nwant\n%q", got, want)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := r.all(); got[len(got)-1] != "Released unlock x held 9s lost true" {
			t.Errorf("in the end %q", got)
		}
	})
}

func TestTraceOfFiles(t *testing.T) {
	var r recorder
	tracer := r.tracer()
	l := locker.Trace(locker.Dir(t.TempDir(), nil), tracer)
	h, err := l.Lock(t.Context(), "x", locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.TryLock(t.Context(), "x", locker.Exclusive); !errors.Is(err, flockctx.ErrLocked) {
		t.Errorf("TryLock: %v", err)
	}
	if hs, err := l.(locker.Inspector).Holders(t.Context(), "x"); err != nil && !errors.Is(err, errors.ErrUnsupported) || err == nil && len(hs) == 0 {
		t.Errorf("Holders: %v, %v", hs, err)
	}
	if err := h.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A hook that panics leaves nothing taken.
	tracer.Acquired = func(context.Context, flockctx.Event) { panic("hook") }
	func() {
		defer func() {
			if p := recover(); p != "hook" {
				t.Errorf("panic %v", p)
			}
		}()
		l.Lock(t.Context(), "x", locker.Exclusive)
	}()
	tracer.Acquired = nil
	h, err = l.TryLock(t.Context(), "x", locker.Exclusive)
	if err != nil {
		t.Fatalf("after a hook that panicked: %v", err)
	}
	if err := h.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l := locker.Dir(t.TempDir(), nil); locker.Trace(l, nil) != l {
		t.Error("a nil tracer makes another Locker")
	}
}

// A hook that waits for its context must not keep Lock from returning, nor the end of a
// lock from being told.
func TestTraceStillWaitingEndsWithWhatItTellsOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		var told []string
		l := locker.Trace(fake{takes: 1500 * time.Millisecond}, &flockctx.Tracer{
			Waiting: func(ctx context.Context, _ flockctx.Event) context.Context {
				return context.WithValue(ctx, key{}, "value")
			},
			StillWaiting: func(ctx context.Context, e flockctx.Event) {
				<-ctx.Done()
				told = append(told, fmt.Sprint(e.Op, " ", ctx.Value(key{})))
			},
		})
		begin := time.Now()
		h, err := l.Lock(context.Background(), "name", locker.Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d != 1500*time.Millisecond {
			t.Errorf("Lock took %v", d)
		}
		time.Sleep(5 * time.Second) // half of what is proved passes without news
		h.Unlock(context.Background())
		synctest.Wait()
		if want := []string{"lock value", "renew value"}; !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}
