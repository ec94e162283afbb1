package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

// What every way to a lock must do, in every way of waiting.
var waits = []flockctx.Wait{flockctx.WaitAuto, flockctx.WaitPoll}

func TestDoneContextAlwaysLoses(t *testing.T) {
	cause := errors.New("the cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	path := tempPath(t)
	check := func(name string, err error) {
		t.Helper()
		busy, ok := err.(*flockctx.BusyError)
		if !ok {
			t.Fatalf("%s: got %v (%T), want a *BusyError", name, err, err)
		}
		if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
			t.Errorf("%s: %v does not match the context's error and cause", name, err)
		}
		if busy.Timeout() || busy.Waited != 0 || busy.Path != path || busy.Mode != flockctx.Shared {
			t.Errorf("%s: %#v", name, busy)
		}
	}
	o := &flockctx.Options{Mode: flockctx.Shared}
	for range 20 { // a coin is not tossed
		_, err := flockctx.Lock(ctx, path, o)
		check("Lock", err)
		check("Flock.Lock", flockctx.New(path, o).Lock(ctx))
		_, err = flockctx.LockAll(ctx, []string{path}, o)
		check("LockAll", err)
		check("Do", flockctx.Do(ctx, path, o, func(*flockctx.Flock) error {
			t.Error("Do called fn")
			return nil
		}))
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("a Lock with a done context created the file")
	}
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	_, err = flockctx.LockFile(ctx, f, o)
	check("LockFile", err)

	l := mustLock(t, path, nil)
	check("Convert", l.Convert(ctx, flockctx.Shared))
	if !l.Locked() || l.Mode() != flockctx.Exclusive {
		t.Error("Convert changed the lock")
	}
}

func TestErrorHasDeadlineAndCause(t *testing.T) {
	for _, wait := range waits {
		for _, foreign := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v,foreign=%v", wait, foreign), func(t *testing.T) {
				path := tempPath(t)
				if foreign {
					startHolder(t, path, flockctx.Options{})
				} else {
					mustLock(t, path, nil)
				}
				cause := errors.New("the cause")
				ctx, cancel := context.WithTimeoutCause(t.Context(), 30*time.Millisecond, cause)
				defer cancel()
				start := time.Now()
				_, err := flockctx.Lock(ctx, path, &flockctx.Options{Mode: flockctx.Shared, Wait: wait})
				took := time.Since(start)
				wantErr(t, err, context.DeadlineExceeded, cause)
				busy, ok := errors.AsType[*flockctx.BusyError](err)
				if !ok {
					t.Fatalf("got %T, want a *BusyError", err)
				}
				if !busy.Timeout() || busy.Path != path || busy.Mode != flockctx.Shared {
					t.Errorf("%#v", busy)
				}
				if busy.Waited <= 0 || busy.Waited > took { // on a loaded machine the open takes most of it
					t.Errorf("waited %v of %v", busy.Waited, took)
				}
				for _, part := range []string{path, "shared", "the cause", "lock"} {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("error %q does not say %q", err, part)
					}
				}
				if timeout, ok := err.(interface{ Timeout() bool }); !ok || !timeout.Timeout() {
					t.Error("not a timeout")
				}
			})
		}
	}
}

func TestCancellationIsNoTimeout(t *testing.T) {
	path := tempPath(t)
	mustLock(t, path, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := async(func() error { _, err := flockctx.Lock(ctx, path, nil); return err })
	eventually(t, "the goroutine waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
	cancel()
	err := soon(t, done, "Lock after cancel")
	wantErr(t, err, context.Canceled)
	if busy, ok := err.(*flockctx.BusyError); !ok || busy.Timeout() {
		t.Errorf("%#v", err)
	}
}

func TestTryLock(t *testing.T) {
	path := tempPath(t)
	l, err := flockctx.TryLock(path, nil)
	must(t, err)
	defer l.Close()
	if !l.Locked() || l.Name() != path || l.Mode() != flockctx.Exclusive {
		t.Errorf("locked %v, name %q, mode %v", l.Locked(), l.Name(), l.Mode())
	}
	check := func(err error) {
		t.Helper()
		wantErr(t, err, flockctx.ErrLocked)
		busy, ok := err.(*flockctx.BusyError)
		if !ok || busy.Waited != 0 || busy.Timeout() || busy.Path != path {
			t.Errorf("%#v", err)
		}
		if !strings.Contains(err.Error(), path) {
			t.Errorf("error %q does not name the path", err)
		}
	}
	_, err = flockctx.TryLock(path, nil)
	check(err)
	_, err = flockctx.TryLock(path, &flockctx.Options{Mode: flockctx.Shared})
	check(err)
	check(l.TryLock()) // one handle is a mutex
	check(newHandle(t, path, nil).TryLock())

	a := startAgent(t, path, flockctx.Options{})
	if s := a.do("trylock"); s != "locked" {
		t.Errorf("in another process: %s", s)
	}
	must(t, l.Unlock())
	a.must("trylock")
	check(l.TryLock())
}

func TestSharedAndExclusive(t *testing.T) {
	shared, exclusive := flockctx.Options{Mode: flockctx.Shared}, flockctx.Options{}
	for _, mechanism := range mechanisms() {
		t.Run(mechanism.String(), func(t *testing.T) {
			shared, exclusive := shared, exclusive
			shared.Mechanism, exclusive.Mechanism = mechanism, mechanism
			path := tempPath(t)
			a := mustLock(t, path, &shared)
			b := mustLock(t, path, &shared)
			other := startAgent(t, path, shared)
			other.must("trylock")
			wantLocked(t, path, exclusive)
			must(t, a.Unlock())
			wantLocked(t, path, exclusive)
			must(t, b.Unlock())
			wantLocked(t, path, exclusive) // the other process
			wantFree(t, path, shared)
			other.must("unlock")
			wantFree(t, path, exclusive)

			c := mustLock(t, path, &exclusive)
			wantLocked(t, path, shared)
			if s := other.do("trylock"); s != "locked" {
				t.Errorf("shared beside exclusive in another process: %s", s)
			}
			must(t, c.Close())
			other.must("trylock")
		})
	}
}

func TestUnlockTwice(t *testing.T) {
	path := tempPath(t)
	l := newHandle(t, path, nil)
	wantErr(t, l.Unlock(), flockctx.ErrNotLocked)
	must(t, l.Lock(t.Context()))
	must(t, l.Unlock())
	err := l.Unlock()
	wantErr(t, err, flockctx.ErrNotLocked)
	pathErr, ok := errors.AsType[*fs.PathError](err)
	if !ok || pathErr.Path != path || pathErr.Op != "unlock" {
		t.Errorf("%#v", err)
	}
	wantErr(t, l.Convert(t.Context(), flockctx.Shared), flockctx.ErrNotLocked)
	must(t, l.Lock(t.Context()))
	must(t, l.Close()) // while locked
	wantFree(t, path, flockctx.Options{})
}

func TestDo(t *testing.T) {
	path := tempPath(t)
	own := errors.New("own")
	t.Run("success", func(t *testing.T) {
		must(t, flockctx.Do(t.Context(), path, nil, func(l *flockctx.Flock) error {
			if !l.Locked() {
				t.Error("not locked")
			}
			wantLocked(t, path, flockctx.Options{})
			return nil
		}))
		wantFree(t, path, flockctx.Options{})
	})
	t.Run("error", func(t *testing.T) {
		err := flockctx.Do(t.Context(), path, nil, func(*flockctx.Flock) error { return own })
		wantErr(t, err, own)
		wantFree(t, path, flockctx.Options{})
	})
	t.Run("panic", func(t *testing.T) {
		func() {
			defer func() {
				if r := recover(); r != own {
					t.Errorf("recovered %v", r)
				}
			}()
			flockctx.Do(t.Context(), path, nil, func(*flockctx.Flock) error { panic(own) })
		}()
		wantFree(t, path, flockctx.Options{})
	})
	t.Run("Goexit", func(t *testing.T) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			flockctx.Do(t.Context(), path, nil, func(*flockctx.Flock) error { runtime.Goexit(); return nil })
		}()
		soon(t, done, "Do with Goexit")
		wantFree(t, path, flockctx.Options{})
	})
	t.Run("fn may unlock, lock and close", func(t *testing.T) {
		must(t, flockctx.Do(t.Context(), path, nil, func(l *flockctx.Flock) error {
			must(t, l.Unlock())
			wantFree(t, path, flockctx.Options{})
			must(t, l.Lock(t.Context()))
			return l.Close()
		}))
		must(t, flockctx.Do(t.Context(), path, nil, func(l *flockctx.Flock) error { return l.Unlock() }))
	})
	t.Run("busy", func(t *testing.T) {
		mustLock(t, path, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		err := flockctx.Do(ctx, path, nil, func(*flockctx.Flock) error { t.Error("called"); return nil })
		wantErr(t, err, context.DeadlineExceeded)
	})
	t.Run("joins the error of the release", func(t *testing.T) {
		if runtime.GOOS == "windows" {
			t.Skip("Windows does not lock directories")
		}
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "x"), nil, 0o600))
		o := &flockctx.Options{Remove: true} // which fails: the directory is not empty
		err := flockctx.Do(t.Context(), dir, o, func(*flockctx.Flock) error { return own })
		wantErr(t, err, own)
		if pathErr, ok := errors.AsType[*fs.PathError](err); !ok || pathErr.Op != "remove" {
			t.Errorf("%v does not have the release's error", err)
		}
		wantFree(t, dir, flockctx.Options{})
	})
}
