package flockctx_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flockctx/flockctx"
)

// Hooks and contexts that panic while a tracer is told.

func TestAPanicOfAHook(t *testing.T) {
	for _, at := range []string{"waiting lock", "still lock", "acquired lock", "failed lock", "released lock", "released unlock", "released close", "acquired convert", "failed convert", "waiting convert", "still convert"} {
		t.Run(at, func(t *testing.T) {
			path := tempPath(t)
			synctest.Test(t, func(t *testing.T) {
				d, other := &diary{panicAt: at}, &diary{}
				o := &flockctx.Options{Tracer: flockctx.JoinTracers(d.tracer(), other.tracer())}
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				l := flockctx.New(path, o)
				var holder *flockctx.Flock
				hold := func(m flockctx.Mode) {
					var err error
					holder, err = flockctx.TryLock(path, &flockctx.Options{Mode: m})
					must(t, err)
				}
				var p any
				var lines []string
				held := false
				switch at {
				case "waiting lock":
					hold(flockctx.Exclusive)
					p = recovered(func() { l.Lock(ctx) })
					lines = []string{"waiting lock", "failed lock"}
				case "still lock":
					hold(flockctx.Exclusive)
					p = recovered(func() { l.Lock(ctx) })
					lines = []string{"waiting lock", "still lock", "failed lock"}
				case "failed lock":
					hold(flockctx.Exclusive)
					p = recovered(func() { l.TryLock() })
					lines = []string{"failed lock"}
				case "acquired lock":
					p = recovered(func() { l.Lock(ctx) })
					lines = []string{"acquired lock", "released lock"}
				case "released lock": // when giving back after another panic
					d.panicAt = "acquired lock"
					p = recovered(func() { l.Lock(ctx) })
					lines = []string{"acquired lock", "released lock"}
				case "released unlock":
					must(t, l.Lock(ctx))
					p = recovered(func() { l.Unlock() })
					lines = []string{"acquired lock", "released unlock"}
				case "released close":
					must(t, l.Lock(ctx))
					p = recovered(func() { l.Close() })
					lines = []string{"acquired lock", "released close"}
				case "acquired convert":
					must(t, l.Lock(ctx))
					p = recovered(func() { l.Convert(ctx, flockctx.Shared) })
					lines = []string{"acquired lock", "acquired convert"}
					if held = true; l.Mode() != flockctx.Shared {
						t.Error("it was converted, and says it was not")
					}
				default:
					must(t, l.Lock(ctx))
					must(t, l.Convert(ctx, flockctx.Shared))
					hold(flockctx.Shared)
					if at == "failed convert" {
						p = recovered(func() { l.TryConvert(flockctx.Exclusive) })
						lines = []string{"acquired lock", "acquired convert", "failed convert"}
					} else {
						p = recovered(func() { l.Convert(ctx, flockctx.Exclusive) })
						lines = []string{"acquired lock", "acquired convert", "waiting convert", "still convert", "failed convert"}
						if at == "waiting convert" {
							lines = []string{"acquired lock", "acquired convert", "waiting convert", "failed convert"}
						}
					}
					held = true
				}
				if p != errHook {
					t.Errorf("panicked with %v, want the hook's own", p)
				}
				d.want(t, lines...)
				// Where one panics the others are told all the same, but for Waiting.
				other.want(t, slices.DeleteFunc(lines, func(s string) bool { return s == at && strings.HasPrefix(s, "waiting") })...)
				if l.Locked() != held {
					t.Errorf("Locked is %v, want %v", l.Locked(), held)
				}
				if holder != nil {
					must(t, holder.Close())
				}
				d.panicAt = ""
				time.Sleep(time.Minute) // StillWaiting must not come
				d.want(t)
				if at != "released close" {
					must(t, l.Close())
				}
				wantFree(t, path, flockctx.Options{})
			})
		})
	}
}

// A context that panics in the middle of a Convert that is waited for and told.
func TestAPanicOfTheContextEndsWhatIsTold(t *testing.T) {
	path := tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		l, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Mode: flockctx.Shared, Tracer: d.tracer()})
		must(t, err)
		other, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Mode: flockctx.Shared})
		must(t, err)
		d.want(t, "acquired lock")
		p := recovered(func() { l.Convert(panicsInDone{t.Context()}, flockctx.Exclusive) })
		if p == nil {
			t.Error("no panic")
		}
		d.want(t, "failed convert")
		time.Sleep(time.Minute)
		d.want(t)
		must(t, other.Close())
		must(t, l.Close())
	})
}

type panicsInDone struct{ context.Context }

func (panicsInDone) Done() <-chan struct{} { panic("Done") }

// Whatever hook panics when a set is closed or rolled back, no file stays locked.
func TestAPanicOfAHookLeavesNoFileOfASetLocked(t *testing.T) {
	paths := []string{tempPath(t), tempPath(t), tempPath(t)}
	free := func() {
		t.Helper()
		for _, path := range paths {
			wantFree(t, path, flockctx.Options{})
		}
	}
	d := &diary{panicAt: "released close"}
	o := &flockctx.Options{Tracer: d.tracer()}
	s, err := flockctx.LockAll(t.Context(), paths, o)
	must(t, err)
	if p := recovered(func() { s.Close() }); p != errHook {
		t.Errorf("panicked with %v", p)
	}
	free()
	for _, busy := range paths {
		holder := mustLock(t, busy, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		recovered(func() { flockctx.LockAll(ctx, paths, o) })
		cancel()
		must(t, holder.Close())
		free()
	}
	d.panicAt = "acquired lock"
	if p := recovered(func() { flockctx.LockAll(t.Context(), paths, o) }); p != errHook {
		t.Errorf("panicked with %v", p)
	}
	free()
}

// A context that panics at the very end, when the error is made of it.
func TestAPanicOfTheContextInTheErrorIsTold(t *testing.T) {
	path := tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		holder, err := flockctx.Lock(t.Context(), path, nil)
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		d := &diary{}
		p := recovered(func() { flockctx.Lock(panicsAfterEnd{ctx}, path, &flockctx.Options{Tracer: d.tracer()}) })
		if p == nil {
			t.Error("no panic")
		}
		d.want(t, "waiting lock", "failed lock")
		must(t, holder.Close())
	})
}

type panicsAfterEnd struct{ context.Context }

func (c panicsAfterEnd) Err() error {
	if err := c.Context.Err(); err != nil {
		panic(err)
	}
	return nil
}

// A hook that panics as LockAll gives back what it has ends the call: what told of its
// wait ends with it.
func TestAPanicOfAHookEndsTheWaitOfASet(t *testing.T) {
	paths := []string{tempPath(t), tempPath(t)}
	synctest.Test(t, func(t *testing.T) {
		for _, busy := range paths { // LockAll takes one of them last
			holder, err := flockctx.Lock(t.Context(), busy, nil)
			must(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			d := &diary{panicAt: "released close"}
			recovered(func() { flockctx.LockAll(ctx, paths, &flockctx.Options{Tracer: d.tracer()}) })
			d.want(t, d.lines...)
			time.Sleep(time.Hour)
			d.want(t)
			must(t, holder.Close())
		}
	})
}
