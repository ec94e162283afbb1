package figures_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/observe/internal/figures"
)

func TestReason(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file.lock")
	holder, err := flockctx.Lock(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	lock := func(ctx context.Context) error {
		_, err := flockctx.Lock(ctx, path, nil)
		return err
	}
	late, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	canceled := func(cause error) context.Context {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		return ctx
	}
	_, taken := flockctx.TryLock(path, nil)
	_, missing := flockctx.TryLock(filepath.Join(path, "below a file"), nil)
	closed := flockctx.New(path, nil)
	closed.Close()

	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"taken", taken, "locked"},
		{"deadline", lock(late), "timeout"},
		{"cancel", lock(canceled(nil)), "canceled"},
		{"canceled because something was closed", lock(canceled(fs.ErrClosed)), "canceled"},
		{"canceled because another lock was lost", lock(canceled(flockctx.ErrNotLocked)), "canceled"},
		{"canceled because the lock of a server was lost", lock(canceled(locker.ErrLost)), "canceled"},
		{"canceled because another lock was taken", lock(canceled(taken)), "canceled"},
		{"closed", closed.Lock(t.Context()), "closed"},
		{"not held", flockctx.New(path, nil).Unlock(), "lost"},
		{"lost by a locker", fmt.Errorf("server: %w", locker.ErrLost), "lost"},
		{"no server until the deadline", &flockctx.BusyError{Err: fmt.Errorf("%w (%w)", context.DeadlineExceeded, locker.ErrUnavailable)}, "unavailable"},
		{"a context of its own kind", &flockctx.BusyError{Err: errors.New("other")}, "canceled"},
		{"no such directory", missing, ""},
		{"joined", errors.Join(errors.New("other"), taken), "locked"},
	} {
		if c.err == nil {
			t.Errorf("%s: no error", c.name)
		}
		if got := figures.Reason(flockctx.Event{Op: "lock", Err: c.err}); got != c.want {
			t.Errorf("%s: %q, want %q (%v)", c.name, got, c.want, c.err)
		}
	}
}

// A Convert whose context ended may have lost the lock as well, which is worse.
func TestAConvertThatLost(t *testing.T) {
	e := flockctx.Event{Op: "convert", Err: &flockctx.BusyError{Err: fmt.Errorf("%w: %w", flockctx.ErrNotLocked, context.Canceled)}}
	if got := figures.Reason(e); got != "lost" {
		t.Errorf("%q, want lost", got)
	}
}

func TestSecondsAscend(t *testing.T) {
	if !slices.IsSorted(figures.Seconds) {
		t.Error(figures.Seconds)
	}
}
