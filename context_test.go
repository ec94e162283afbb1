package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"go.uber.org/goleak"
)

// Contexts that are not what they should be: nil ones, and those of the caller that
// panic, end without an error, or end with an error of a strange type.

// callsContext are the functions that take a context. Each is called with a path, and
// with a handle on it that is locked in shared mode where held is set.
var callsContext = []struct {
	name string
	held bool
	call func(ctx context.Context, path string, l *flockctx.Flock, o *flockctx.Options) error
}{
	{"Lock", false, func(ctx context.Context, path string, _ *flockctx.Flock, o *flockctx.Options) error {
		l, err := flockctx.Lock(ctx, path, o)
		if err == nil {
			err = l.Close()
		}
		return err
	}},
	{"Lock of a handle", false, func(ctx context.Context, _ string, l *flockctx.Flock, _ *flockctx.Options) error {
		err := l.Lock(ctx)
		if err == nil {
			err = l.Unlock()
		}
		return err
	}},
	{"LockFile", false, func(ctx context.Context, path string, _ *flockctx.Flock, o *flockctx.Options) error {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		l, err := flockctx.LockFile(ctx, f, o)
		if err == nil {
			err = l.Close()
		}
		return err
	}},
	{"LockAll", false, func(ctx context.Context, path string, _ *flockctx.Flock, o *flockctx.Options) error {
		s, err := flockctx.LockAll(ctx, []string{path + "1", path, path + "2"}, o)
		if err == nil {
			err = s.Close()
		}
		return err
	}},
	{"Do", false, func(ctx context.Context, path string, _ *flockctx.Flock, o *flockctx.Options) error {
		return flockctx.Do(ctx, path, o, func(*flockctx.Flock) error { return nil })
	}},
	{"Convert", true, func(ctx context.Context, _ string, l *flockctx.Flock, _ *flockctx.Options) error {
		err := l.Convert(ctx, flockctx.Exclusive)
		if err == nil {
			err = l.Convert(context.Background(), flockctx.Shared)
		}
		return err
	}},
}

// recovered calls fn and returns what it panicked with, or nil.
func recovered(fn func()) (p any) {
	defer func() { p = recover() }()
	fn()
	return nil
}

func TestNilContextPanics(t *testing.T) {
	for _, c := range callsContext {
		path := tempPath(t)
		l := newHandle(t, path, &flockctx.Options{Mode: flockctx.Shared})
		if c.held {
			must(t, l.Lock(t.Context()))
		}
		p := recovered(func() { t.Errorf("%s returned %v", c.name, c.call(nil, path, l, nil)) })
		if s, ok := p.(string); !ok || s != "flockctx: nil context" {
			t.Errorf("%s: panics with %v", c.name, p)
		}
		if l.Locked() != c.held {
			t.Errorf("%s: locked is %v", c.name, l.Locked())
		}
		must(t, soon(t, async(l.Close), "Close"))
		wantFree(t, path, flockctx.Options{})
	}
	if p := recovered(func() { flockctx.Do(t.Context(), tempPath(t), nil, nil) }); p == nil {
		t.Error("Do with a nil function does not panic")
	}
}

// panicky panics from the nth call on of one of its methods, as the context of a request
// that its framework has recycled may.
type panicky struct {
	context.Context
	method string
	left   *atomic.Int32
	cancel context.CancelFunc
}

const recycled = "recycled context"

func newPanicky(method string, n int) panicky {
	ctx, cancel := context.WithTimeout(context.Background(), patience) // for a Done and a Deadline
	c := panicky{ctx, method, new(atomic.Int32), cancel}
	c.left.Store(int32(n))
	return c
}

func (c panicky) called(method string) {
	if c.method == method && c.left.Add(-1) < 0 {
		panic(recycled)
	}
}

func (c panicky) Err() error                       { c.called("Err"); return c.Context.Err() }
func (c panicky) Done() <-chan struct{}            { c.called("Done"); return c.Context.Done() }
func (c panicky) Deadline() (d time.Time, ok bool) { c.called("Deadline"); return c.Context.Deadline() }
func (c panicky) Value(key any) any                { c.called("Value"); return c.Context.Value(key) }

// Whenever a context panics, the panic reaches the caller, and nothing is left taken: no
// lock, no handle, no place in a queue, no goroutine.
func TestContextThatPanics(t *testing.T) {
	for _, c := range callsContext {
		for _, wait := range waits {
			for _, who := range []string{"nobody", "a goroutine", "another process"} {
				t.Run(fmt.Sprintf("%s,%v,%s", c.name, wait, who), func(t *testing.T) {
					path := tempPath(t)
					o := flockctx.Options{Wait: wait}
					agent := startAgent(t, path, flockctx.Options{Mode: flockctx.Shared})
					free := func() {}
					hold := func() {
						switch who {
						case "a goroutine":
							other := mustLock(t, path, &flockctx.Options{Mode: flockctx.Shared})
							free = func() { must(t, other.Close()) }
						case "another process":
							agent.must("lock")
							free = func() { agent.must("unlock") }
						}
					}
					ignore := goleak.IgnoreCurrent()
					for method, calls := range map[string]int{"Err": 10, "Done": 2, "Deadline": 2, "Value": 4} {
						for n := range calls {
							panicsInCall(t, c.held, func(l *flockctx.Flock) error {
								ctx := newPanicky(method, n)
								defer ctx.cancel()
								return c.call(ctx, path, l, &o)
							}, path, hold, func() { free() })
						}
					}
					if err := goleak.Find(ignore); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// panicsInCall makes one call whose context may panic, while others hold the lock for up
// to 2 ms, and looks at what it leaves.
func panicsInCall(t *testing.T, held bool, call func(*flockctx.Flock) error, path string, hold, free func()) {
	t.Helper()
	l := newHandle(t, path, &flockctx.Options{Mode: flockctx.Shared})
	if held {
		must(t, l.Lock(t.Context()))
	}
	hold()
	descriptors, queues := countDescriptors(), flockctx.Queues()
	var err error
	done := async(func() error {
		if p := recovered(func() { err = call(l) }); p != nil {
			if p != recycled {
				t.Errorf("panics with %v", p)
			}
			return nil
		}
		return err
	})
	select {
	case err := <-done: // a panic, or granted at once
		must(t, err)
		free()
	case <-time.After(2 * time.Millisecond):
		free()
		must(t, soon(t, done, "a call that was not to panic"))
	}
	if l.Locked() != held {
		t.Errorf("locked is %v", l.Locked())
	}
	if n := flockctx.WaitingOutside() + flockctx.Waiters(path, flockctx.BSD); n != 0 {
		t.Errorf("%d goroutines still wait", n)
	}
	if n := countDescriptors(); n > descriptors+1 { // an unlocked handle keeps its file
		t.Errorf("%d descriptors before, %d after", descriptors, n)
	}
	must(t, soon(t, async(l.Close), "Close"))
	if n := flockctx.Queues(); n > queues {
		t.Errorf("%d queues before, %d after", queues, n)
	}
	for _, p := range []string{path, path + "1", path + "2"} {
		wantFree(t, p, flockctx.Options{})
	}
}

// list is an error that cannot be compared.
type list []error

func (l list) Error() string { return fmt.Sprintf("%d errors", len(l)) }

// strange ends with an error of its own.
type strange struct {
	context.Context
	err error
}

func (c strange) Err() error {
	if c.Context.Err() == nil {
		return nil
	}
	return c.err
}

// The error, and the cause, of a context may be of any type, also one that cannot be
// compared; and a context may end without an error, which it should not.
func TestContextThatEndsStrangely(t *testing.T) {
	cause := list{errors.New("cause")}
	for _, wait := range waits {
		for _, foreign := range []bool{false, true} {
			path := tempPath(t)
			if foreign {
				startHolder(t, path, flockctx.Options{})
			} else {
				mustLock(t, path, nil)
			}
			held := newHandle(t, path, nil)
			for name, wrap := range map[string]func(context.Context) context.Context{
				"uncomparable error": func(ctx context.Context) context.Context { return strange{ctx, list{}} },
				"uncomparable cause": func(ctx context.Context) context.Context { return ctx },
				"no error":           func(ctx context.Context) context.Context { return strange{ctx, nil} },
			} {
				for caller, lock := range map[string]func(context.Context) error{
					"Lock": func(ctx context.Context) error {
						_, err := flockctx.Lock(ctx, path, &flockctx.Options{Wait: wait})
						return err
					},
					"Lock of a handle": held.Lock,
					"LockAll": func(ctx context.Context) error {
						_, err := flockctx.LockAll(ctx, []string{path}, &flockctx.Options{Wait: wait})
						return err
					},
				} {
					ctx, cancel := context.WithCancelCause(t.Context())
					done := async(func() error { return lock(wrap(ctx)) })
					eventually(t, "it waits", func() bool {
						return flockctx.WaitingOutside()+flockctx.Waiters(path, flockctx.BSD) == 1
					})
					cancel(cause)
					err := soon(t, done, name)
					if busy, ok := err.(*flockctx.BusyError); !ok || busy.Error() == "" || busy.Timeout() {
						t.Errorf("%s, %s: %#v", caller, name, err)
					}
					if got, ok := errors.AsType[list](err); !ok && name != "no error" {
						t.Errorf("%s, %s: %v has no %T", caller, name, err, got)
					}
				}
			}
		}
	}
}

// A context that was done before the call says that, and not that the file is locked; it
// is a timeout only where a deadline ended it.
func TestContextThatWasDoneBeforeTheCall(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for _, c := range callsContext {
		for ctx, timeout := range map[context.Context]bool{cancelled: false, late: true} {
			path := tempPath(t)
			l := newHandle(t, path, &flockctx.Options{Mode: flockctx.Shared})
			if c.held {
				must(t, l.Lock(t.Context()))
			}
			err := c.call(ctx, path, l, nil)
			wantErr(t, err, ctx.Err())
			busy, ok := err.(*flockctx.BusyError)
			if !ok || busy.Timeout() != timeout || busy.Waited != 0 || errors.Is(err, flockctx.ErrLocked) {
				t.Errorf("%s: %#v, timeout %v", c.name, err, ok && busy.Timeout())
			}
			if ok {
				wantText(t, err, "the context had ended")
			}
		}
	}
}
