package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flockctx/flockctx"
)

// A diary writes down what its tracer is told: "hook op", and with a file "hook op file".
type diary struct {
	mu      sync.Mutex
	lines   []string
	events  []flockctx.Event
	panicAt string // the line of a hook that is to panic, instead of "hook op"
}

func (d *diary) note(hook string, e flockctx.Event) {
	line := hook + " " + e.Op
	d.mu.Lock()
	d.lines = append(d.lines, line)
	d.events = append(d.events, e)
	at := d.panicAt
	d.mu.Unlock()
	if at == line {
		panic(errHook)
	}
}

var errHook = errors.New("a hook panics")

func (d *diary) tracer() *flockctx.Tracer {
	with := func(hook string) func(context.Context, flockctx.Event) {
		return func(_ context.Context, e flockctx.Event) { d.note(hook, e) }
	}
	return &flockctx.Tracer{
		Waiting: func(_ context.Context, e flockctx.Event) context.Context {
			d.note("waiting", e)
			return nil
		},
		StillWaiting: with("still"),
		Acquired:     with("acquired"),
		Failed:       with("failed"),
		Released:     func(e flockctx.Event) { d.note("released", e) },
	}
}

// want fails unless the diary says lines, and empties it.
func (d *diary) want(t testing.TB, lines ...string) []flockctx.Event {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.lines, lines) {
		t.Fatalf("told:\n\t%s\nwant:\n\t%s", strings.Join(d.lines, "\n\t"), strings.Join(lines, "\n\t"))
	}
	events := d.events
	d.lines, d.events = nil, nil
	return events
}

// setTracer sets the tracer of the process until the end of the test.
func setTracer(t testing.TB, tracer *flockctx.Tracer) {
	t.Helper()
	old := flockctx.SetTracer(tracer)
	t.Cleanup(func() { flockctx.SetTracer(old) })
}

func TestEachCallIsTold(t *testing.T) {
	path := tempPath(t)
	d := &diary{}
	o := &flockctx.Options{Tracer: d.tracer()}
	l := newHandle(t, path, o)
	ctx := t.Context()

	must(t, l.Lock(ctx))
	e := d.want(t, "acquired lock")[0]
	if e.Path != path || e.Mode != flockctx.Exclusive || e.Mechanism != flockctx.BSD || e.Waited != 0 || e.Err != nil || e.Flock != l {
		t.Errorf("%+v", e)
	}
	_, err := flockctx.TryLock(path, o)
	wantErr(t, err, flockctx.ErrLocked)
	if e := d.want(t, "failed lock")[0]; e.Err != err || e.Waited != 0 {
		t.Errorf("%+v, want the error of the call: %v", e, err)
	}
	must(t, l.Convert(ctx, flockctx.Shared))
	if e := d.want(t, "acquired convert")[0]; e.Mode != flockctx.Shared {
		t.Errorf("%+v", e)
	}
	must(t, l.Convert(ctx, flockctx.Shared)) // nothing happens
	must(t, l.TryConvert(flockctx.Exclusive))
	must(t, l.Convert(ctx, flockctx.Shared))
	must(t, l.Unlock())
	events := d.want(t, "acquired convert", "acquired convert", "released unlock")
	if e := events[2]; e.Mode != flockctx.Shared || e.Held <= 0 || e.Err != nil {
		t.Errorf("%+v", e)
	}
	wantErr(t, l.Unlock(), flockctx.ErrNotLocked)
	d.want(t)
	must(t, l.Lock(ctx)) // in the mode that it was converted to
	if e := d.want(t, "acquired lock")[0]; e.Mode != flockctx.Shared {
		t.Errorf("%+v, want the mode of the handle", e)
	}
	must(t, l.Close())
	d.want(t, "released close")
	err = l.Lock(ctx)
	wantErr(t, err, fs.ErrClosed)
	if e := d.want(t, "failed lock")[0]; e.Err != err || e.Waited != 0 {
		t.Errorf("%+v", e)
	}
	wantErr(t, l.Convert(ctx, flockctx.Shared), fs.ErrClosed)
	d.want(t, "failed convert")

	ended, cancel := context.WithCancelCause(ctx)
	cause := errors.New("the cause")
	cancel(cause)
	_, err = flockctx.Lock(ended, path, o)
	wantErr(t, err, context.Canceled, cause)
	if e := d.want(t, "failed lock")[0]; e.Err != err {
		t.Errorf("%+v", e)
	}
	_, err = flockctx.Lock(ctx, path, &flockctx.Options{Tracer: o.Tracer, Start: -1, Mechanism: flockctx.OFD})
	wantErr(t, err, errInvalid)
	d.want(t, "failed lock")

	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	b, err := flockctx.LockFile(ctx, f, o)
	must(t, err)
	must(t, b.Close())
	d.want(t, "acquired lock", "released close")
	must(t, flockctx.Do(ctx, path, o, func(*flockctx.Flock) error { return nil }))
	d.want(t, "acquired lock", "released close")
}

func TestAWaitIsTold(t *testing.T) {
	path := tempPath(t)
	type key struct{}
	got := make(chan any, 1)
	d := &diary{}
	tracer := flockctx.JoinTracers(nil, d.tracer(), &flockctx.Tracer{
		Waiting: func(ctx context.Context, _ flockctx.Event) context.Context {
			return context.WithValue(ctx, key{}, "span")
		},
		Acquired: func(ctx context.Context, _ flockctx.Event) { got <- ctx.Value(key{}) },
		Failed:   func(ctx context.Context, _ flockctx.Event) { got <- ctx.Value(key{}) },
	})
	holder := mustLock(t, path, nil)
	l := newHandle(t, path, &flockctx.Options{Tracer: tracer})
	granted := async(func() error { return l.Lock(t.Context()) })
	eventually(t, "it waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
	must(t, holder.Unlock())
	must(t, soon(t, granted, "the grant"))
	if v := <-got; v != "span" {
		t.Errorf("Acquired got a context with %v, not the one of Waiting", v)
	}
	if e := d.want(t, "waiting lock", "acquired lock"); e[0].Waited != 0 || e[1].Waited <= 0 {
		t.Errorf("%+v", e)
	}
	must(t, l.Unlock())
	must(t, holder.Lock(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	err := l.Lock(ctx)
	wantErr(t, err, context.DeadlineExceeded)
	if v := <-got; v != "span" {
		t.Errorf("Failed got a context with %v", v)
	}
	if e := d.want(t, "released unlock", "waiting lock", "failed lock")[2]; e.Err != err || e.Waited < time.Millisecond {
		t.Errorf("%+v", e)
	}
}

func TestProcessAndHandleTracerAreBothTold(t *testing.T) {
	path := tempPath(t)
	var mu sync.Mutex
	var told []string
	note := func(who string) *flockctx.Tracer {
		return &flockctx.Tracer{
			Acquired: func(context.Context, flockctx.Event) { mu.Lock(); told = append(told, who+" acquired"); mu.Unlock() },
			Released: func(e flockctx.Event) {
				mu.Lock()
				told = append(told, fmt.Sprint(who, " released ", e.Held > 0))
				mu.Unlock()
			},
		}
	}
	l := newHandle(t, path, &flockctx.Options{Tracer: note("handle")})
	setTracer(t, note("process"))
	must(t, l.Lock(t.Context()))
	other := flockctx.SetTracer(note("other"))
	if other == nil {
		t.Error("SetTracer did not return the one that was set")
	}
	must(t, l.Unlock())
	flockctx.SetTracer(nil)
	must(t, l.Lock(t.Context()))
	must(t, l.Unlock())
	want := []string{"process acquired", "handle acquired", "other released true", "handle released true", "handle acquired", "handle released true"}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

// What was held before anybody listened was held for an unknown time, also where an
// earlier lock of the handle was told.
func TestHeldIsOfThisGrant(t *testing.T) {
	l := newHandle(t, tempPath(t), nil)
	d := &diary{}
	setTracer(t, d.tracer())
	must(t, l.Lock(t.Context()))
	flockctx.SetTracer(nil)
	must(t, l.Unlock())
	must(t, l.Lock(t.Context()))
	flockctx.SetTracer(d.tracer())
	must(t, l.Unlock())
	if e := d.want(t, "acquired lock", "released unlock")[1]; e.Held != 0 {
		t.Errorf("held for %v, of which no tracer saw the beginning", e.Held)
	}
}

func TestStillWaitingDoubles(t *testing.T) {
	for _, end := range []string{"granted", "deadline", "closed"} {
		t.Run(end, func(t *testing.T) {
			path := tempPath(t)
			synctest.Test(t, func(t *testing.T) {
				holder, err := flockctx.Lock(t.Context(), path, nil)
				must(t, err)
				var waited []time.Duration
				start := time.Now()
				l := flockctx.New(path, &flockctx.Options{Tracer: &flockctx.Tracer{
					StillWaiting: func(_ context.Context, e flockctx.Event) {
						if since := time.Since(start); since != e.Waited {
							t.Errorf("told after %v that it waits since %v", since, e.Waited)
						}
						waited = append(waited, e.Waited)
					},
				}})
				ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
				defer cancel()
				done := async(func() error { return l.Lock(ctx) })
				switch end {
				case "granted":
					time.Sleep(6 * time.Second)
					must(t, holder.Unlock())
					must(t, <-done)
				case "deadline":
					wantErr(t, <-done, context.DeadlineExceeded)
				case "closed":
					time.Sleep(7*time.Second - 1)
					must(t, l.Close())
					wantErr(t, <-done, fs.ErrClosed)
				}
				time.Sleep(time.Minute)
				if want := []time.Duration{1e9, 2e9, 4e9}; !slices.Equal(waited, want) {
					t.Errorf("told after %v, want %v", waited, want)
				}
				l.Close()
				must(t, holder.Close())
			})
		})
	}
}

// A StillWaiting that takes its time learns that the wait is over, and does not delay it.
func TestStillWaitingIsToldTheEnd(t *testing.T) {
	for _, end := range []string{"granted", "deadline"} {
		t.Run(end, func(t *testing.T) {
			path := tempPath(t)
			type key struct{}
			synctest.Test(t, func(t *testing.T) {
				holder, err := flockctx.Lock(t.Context(), path, nil)
				must(t, err)
				var value any
				l := flockctx.New(path, &flockctx.Options{Tracer: &flockctx.Tracer{
					Waiting: func(ctx context.Context, _ flockctx.Event) context.Context {
						return context.WithValue(ctx, key{}, "span")
					},
					StillWaiting: func(ctx context.Context, _ flockctx.Event) {
						value = ctx.Value(key{})
						<-ctx.Done()
					},
				}})
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				start := time.Now()
				done := async(func() error { return l.Lock(ctx) })
				if end == "granted" {
					time.Sleep(2500 * time.Millisecond)
					must(t, holder.Unlock())
					must(t, <-done)
				} else {
					wantErr(t, <-done, context.DeadlineExceeded)
				}
				if d := time.Since(start); d > 3*time.Second {
					t.Errorf("it took %v", d)
				}
				if value != "span" {
					t.Errorf("the context of Waiting has %v", value)
				}
				must(t, l.Close())
				must(t, holder.Close())
			})
		})
	}
}

func TestAHookMayLookAndLockOtherFiles(t *testing.T) {
	path, other := tempPath(t), tempPath(t)
	look := func(e flockctx.Event) {
		e.Holders() // an error where the system cannot tell
		flockctx.Snapshot()
		e.Flock.Locked()
		e.Flock.File()
		e.Flock.Mode()
		l, err := flockctx.TryLock(other, nil)
		if err != nil {
			t.Error(err)
			return
		}
		l.Close()
	}
	with := func(_ context.Context, e flockctx.Event) { look(e) }
	o := &flockctx.Options{Tracer: &flockctx.Tracer{
		Waiting: func(ctx context.Context, e flockctx.Event) context.Context {
			look(e)
			return ctx
		},
		StillWaiting: with, Acquired: with, Failed: with, Released: look,
	}}
	done := async(func() error {
		l, err := flockctx.Lock(t.Context(), path, o)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
		defer cancel()
		_, err = flockctx.Lock(ctx, path, o)
		wantErr(t, err, context.DeadlineExceeded)
		if err := l.Convert(t.Context(), flockctx.Shared); err != nil {
			return err
		}
		return l.Close()
	})
	must(t, soon(t, done, "calls whose hooks look"))
}

func TestLockAllIsToldPerFile(t *testing.T) {
	a, b := tempPath(t), tempPath(t)
	d := &diary{}
	o := &flockctx.Options{Tracer: d.tracer()}
	s, err := flockctx.LockAll(t.Context(), []string{a, b}, o)
	must(t, err)
	must(t, s.Close())
	d.want(t, "acquired lock", "acquired lock", "released close", "released close")

	for _, path := range []string{a, b} { // whichever comes first
		holder := mustLock(t, path, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := async(func() error { _, err := flockctx.LockAll(ctx, []string{a, b}, o); return err })
		eventually(t, "it waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
		cancel()
		err := soon(t, done, "LockAll after cancel")
		wantErr(t, err, context.Canceled)
		must(t, holder.Close())
		d.mu.Lock()
		last := d.events[len(d.events)-1]
		lines := strings.Join(d.lines, ", ")
		d.lines, d.events = nil, nil
		d.mu.Unlock()
		if lines != "waiting lock, failed lock" && lines != "acquired lock, waiting lock, released close, failed lock" {
			t.Errorf("told %s", lines)
		}
		if last.Path != path || last.Err != err || last.Waited <= 0 {
			t.Errorf("%+v, want %v of %s", last, err, path)
		}
	}
}

// A LockAll that waits for a file that is replaced begins anew, and what was told of its
// wait ends.
func TestLockAllThatStartsAgainIsTold(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a name of an open file goes late here")
	}
	path := tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		holder, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Remove: true})
		must(t, err)
		var s *flockctx.Set
		done := async(func() (err error) {
			s, err = flockctx.LockAll(t.Context(), []string{path}, &flockctx.Options{Tracer: d.tracer()})
			return err
		})
		time.Sleep(1500 * time.Millisecond)
		must(t, holder.Close())
		must(t, <-done)
		time.Sleep(time.Minute)
		d.want(t, "waiting lock", "still lock", "failed lock", "acquired lock")
		must(t, s.Close())
	})
}

// A reader that comes in because a writer became one is told after that.
func TestAConversionIsToldBeforeOthersComeIn(t *testing.T) {
	path := tempPath(t)
	d := &diary{}
	o := &flockctx.Options{Tracer: d.tracer()}
	l := mustLock(t, path, o)
	reader := newHandle(t, path, &flockctx.Options{Mode: flockctx.Shared, Tracer: o.Tracer})
	granted := async(func() error { return reader.Lock(t.Context()) })
	eventually(t, "the reader waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
	must(t, l.Convert(t.Context(), flockctx.Shared))
	must(t, soon(t, granted, "the reader"))
	d.want(t, "acquired lock", "waiting lock", "acquired convert", "acquired lock")
}

// A hook must not close the handle that it is told of, but may have another goroutine do
// so: that ends the wait, also of a handle that the caller does not know yet.
func TestHandleOfAnEventIsClosedElsewhere(t *testing.T) {
	for _, wait := range waits {
		path := tempPath(t)
		startHolder(t, path, flockctx.Options{})
		closing := make(chan error, 1)
		o := &flockctx.Options{Wait: wait, Tracer: &flockctx.Tracer{
			Waiting: func(_ context.Context, e flockctx.Event) context.Context {
				go func() {
					for flockctx.WaitingOutside() == 0 {
						time.Sleep(ms)
					}
					closing <- e.Flock.Close()
				}()
				return nil
			},
		}}
		done := async(func() error { _, err := flockctx.Lock(t.Context(), path, o); return err })
		wantErr(t, soon(t, done, "Lock of a handle that is closed"), fs.ErrClosed)
		must(t, soon(t, closing, "Close"))
	}
}

// Who waits for a handle that a hook has shown has it when the call that made it fails.
func TestHandleOfAnEventIsLockedElsewhere(t *testing.T) {
	path := tempPath(t)
	holder := mustLock(t, path, nil)
	ctx, cancel := context.WithCancel(t.Context())
	locked := make(chan error, 1)
	shown := make(chan *flockctx.Flock, 1)
	var once sync.Once
	o := &flockctx.Options{Tracer: &flockctx.Tracer{
		Waiting: func(_ context.Context, e flockctx.Event) context.Context {
			go once.Do(func() {
				shown <- e.Flock
				go func() { locked <- e.Flock.Lock(t.Context()) }()
				eventually(t, "the other goroutine waits", func() bool { return flockctx.HandleWaiters(e.Flock) == 1 })
				cancel()
			})
			return nil
		},
	}}
	_, err := flockctx.Lock(ctx, path, o)
	wantErr(t, err, context.Canceled)
	must(t, holder.Close())
	must(t, soon(t, locked, "Lock of the handle of an event"))
	must(t, (<-shown).Close())
}
