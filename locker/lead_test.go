package locker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
)

// fickle is a Locker whose locks are lost on demand, and whose Lock fails with the next
// of errs.
type fickle struct {
	lossy
	errs  []error
	calls int
}

func (l *fickle) Lock(ctx context.Context, name string, m locker.Mode) (locker.Held, error) {
	if l.calls++; len(l.errs) > 0 && ctx.Err() == nil {
		err := l.errs[0]
		l.errs = l.errs[1:]
		if err != nil {
			return nil, err
		}
	}
	return l.lossy.Lock(ctx, name, m)
}

func newFickle(t *testing.T, errs ...error) *fickle {
	return &fickle{lossy: lossy{Locker: locker.Dir(t.TempDir(), nil)}, errs: errs}
}

// free fails unless the lock of name can be had.
func (l *fickle) free(t *testing.T, name string) {
	t.Helper()
	h, err := l.Locker.TryLock(t.Context(), name, locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	h.Unlock(t.Context())
}

func TestLeadCampaignsUntilFnEnds(t *testing.T) {
	l := newFickle(t, nil, fmt.Errorf("queue: %w", locker.ErrLost), fmt.Errorf("down: %w", locker.ErrUnavailable), locker.ErrUnavailable)
	errFn := errors.New("fn's")
	terms := 0
	err := locker.Lead(t.Context(), l, "lead", func(ctx context.Context) error {
		if terms++; terms < 3 {
			l.held.lose(fmt.Errorf("revoked: %w", locker.ErrLost))
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), locker.ErrLost) {
				t.Error(context.Cause(ctx))
			}
			return []error{nil, errFn}[terms-1] // whatever it is
		}
		if h, ok := locker.HeldFrom(ctx); !ok || h != locker.Held(l.held) {
			t.Errorf("HeldFrom: %v, %v", h, ok)
		}
		if _, err := l.Locker.TryLock(ctx, "lead", locker.Shared); !errors.Is(err, flockctx.ErrLocked) {
			t.Errorf("it leads without the lock: %v", err)
		}
		return errFn
	})
	if err != errFn || terms != 3 || l.calls != 6 {
		t.Errorf("%v after %d terms and %d calls of Lock", err, terms, l.calls)
	}
	l.free(t, "lead")
}

func TestLeadEndsWithCtx(t *testing.T) {
	cause := errors.New("the cause")
	never := func(context.Context) error { return errors.New("fn was called") }

	l := newFickle(t)
	h, err := l.Locker.Lock(t.Context(), "lead", locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
	if err := locker.Lead(ctx, l, "lead", never); !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
		t.Errorf("while it waits: %v", err)
	}
	h.Unlock(t.Context())

	// In a pause.
	errs := make([]error, 1000)
	for i := range errs {
		errs[i] = locker.ErrUnavailable
	}
	l = newFickle(t, errs...)
	ctx, cancel = context.WithCancelCause(t.Context())
	time.AfterFunc(300*time.Millisecond, func() { cancel(cause) })
	if err := locker.Lead(ctx, l, "lead", never); !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
		t.Errorf("in a pause: %v", err)
	}
	if l.calls > 8 {
		t.Errorf("%d campaigns in 300 ms", l.calls)
	}

	ctx, cancel = context.WithCancelCause(t.Context())
	err = locker.Lead(ctx, l.lossy.Locker, "lead", func(ctx context.Context) error {
		cancel(cause)
		<-ctx.Done()
		return nil
	})
	if err != nil {
		t.Errorf("while fn runs: %v", err)
	}
	// The loss comes too: it is told, and nobody campaigns.
	l = newFickle(t)
	err = locker.Lead(ctx, l, "lead", never)
	if !errors.Is(err, cause) {
		t.Errorf("before it began: %v", err)
	}
	ctx, cancel = context.WithCancelCause(t.Context())
	err = locker.Lead(ctx, l, "lead", func(ctx context.Context) error {
		l.held.lose(locker.ErrLost)
		cancel(cause)
		return nil
	})
	if !errors.Is(err, locker.ErrLost) {
		t.Errorf("lost and canceled: %v", err)
	}
	l.free(t, "lead")
}

func TestLeadReturnsWhatWillNotPass(t *testing.T) {
	errLock := errors.New("no such server")
	if err := locker.Lead(t.Context(), newFickle(t, errLock), "lead", func(context.Context) error { return nil }); err != errLock {
		t.Error(err)
	}
	// A panic comes through, and leaves nothing locked.
	l := newFickle(t)
	func() {
		defer func() {
			if recover() != "fn's" {
				t.Error("the panic did not come through")
			}
		}()
		locker.Lead(t.Context(), l, "lead", func(context.Context) error { panic("fn's") })
	}()
	l.free(t, "lead")
}

func TestHeldFrom(t *testing.T) {
	if h, ok := locker.HeldFrom(t.Context()); h != nil || ok {
		t.Error(h, ok)
	}
	l := newFickle(t)
	err := locker.Do(t.Context(), l, "outer", locker.Exclusive, func(ctx context.Context) error {
		outer := l.held
		return locker.Do(ctx, l, "inner", locker.Exclusive, func(inner context.Context) error {
			if h, _ := locker.HeldFrom(ctx); h != locker.Held(outer) {
				t.Error("the outer context has another lock")
			}
			if h, _ := locker.HeldFrom(inner); h != locker.Held(l.held) || l.held == outer {
				t.Error("the inner context has another lock")
			}
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
}

func TestNote(t *testing.T) {
	if got := locker.Note(t.Context()); got != "" {
		t.Errorf("%q", got)
	}
	for note, want := range map[string]string{
		"deploy 17":                     "deploy 17",
		"a\x00b\xffc":                   "abc",
		strings.Repeat("x", 255) + "ä!": strings.Repeat("x", 255),
	} {
		if got := locker.Note(locker.WithNote(t.Context(), note)); got != want {
			t.Errorf("%q: %q", note, got)
		}
	}
}

func TestNilFunctionPanicsBeforeAnythingIsLocked(t *testing.T) {
	for name, call := range map[string]func(l locker.Locker){
		"Do": func(l locker.Locker) {
			locker.Do(context.Background(), l, "name", locker.Exclusive, nil)
		},
		"Lead": func(l locker.Locker) { locker.Lead(context.Background(), l, "name", nil) },
	} {
		func() {
			defer func() {
				if p, want := recover(), "locker: "+name+" with a nil function"; p != want {
					t.Errorf("%s panicked with %v, want %q", name, p, want)
				}
			}()
			call(nil) // would panic otherwise, if it were locked
		}()
	}
}
