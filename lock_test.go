package flockctx_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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

func TestAfterClose(t *testing.T) {
	queues := flockctx.Queues()
	path := tempPath(t)
	never := flockctx.New(path, nil)
	unlocked := flockctx.New(path, nil)
	must(t, unlocked.Lock(t.Context()))
	must(t, unlocked.Unlock())
	locked := flockctx.New(path, nil)
	must(t, locked.Lock(t.Context()))
	for name, l := range map[string]*flockctx.Flock{"never locked": never, "unlocked": unlocked, "locked": locked} {
		t.Run(name, func(t *testing.T) {
			must(t, l.Close())
			for call, err := range map[string]error{
				"Close":   l.Close(),
				"Lock":    l.Lock(t.Context()),
				"TryLock": l.TryLock(),
				"Unlock":  l.Unlock(),
				"Convert": l.Convert(t.Context(), flockctx.Shared),
			} {
				if !errors.Is(err, fs.ErrClosed) {
					t.Errorf("%s: %v, want fs.ErrClosed", call, err)
				}
				if pathErr, ok := errors.AsType[*fs.PathError](err); !ok || pathErr.Path != path {
					t.Errorf("%s: %#v", call, err)
				}
			}
			if l.Locked() || l.File() != nil {
				t.Errorf("locked %v, file %v", l.Locked(), l.File())
			}
		})
	}
	if n := flockctx.Queues(); n > queues {
		t.Errorf("%d queues before, %d after", queues, n)
	}
}

// A handle without an open file has the zero descriptor, which is not number 0.
func TestCloseLeavesDescriptorsAlone(t *testing.T) {
	before := countDescriptors()
	path := tempPath(t)
	must(t, flockctx.New(path, nil).Close())

	dir := newHandle(t, filepath.Join(path, "missing", "x"), nil)
	if err := dir.Lock(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
	must(t, dir.Close())

	mustLock(t, path, nil)
	busy := flockctx.New(path, nil)
	wantErr(t, busy.TryLock(), flockctx.ErrLocked)
	must(t, busy.Close())

	if _, err := os.Stdin.Stat(); err != nil {
		t.Errorf("standard input is closed: %v", err)
	}
	if after := countDescriptors(); after != before && after != before+1 { // +1: the lock held
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestCloseFromManyGoroutines(t *testing.T) {
	stdin, err := os.Stdin.Stat()
	must(t, err)
	for range 200 {
		l, err := flockctx.Lock(t.Context(), tempPath(t), nil)
		must(t, err)
		var wg sync.WaitGroup
		var closed atomic.Int32
		for range 4 {
			wg.Go(func() {
				switch err := l.Close(); {
				case err == nil:
					closed.Add(1)
				case !errors.Is(err, fs.ErrClosed):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := closed.Load(); n != 1 {
			t.Fatalf("%d of 4 calls of Close returned nil", n)
		}
	}
	after, err := os.Stdin.Stat()
	if err != nil || !os.SameFile(stdin, after) {
		t.Errorf("standard input is another file: %v", err)
	}
}

// Trap 4: one handle in 8 goroutines, and 8 of them inside together.
func TestTrap4OneHandleInManyGoroutinesIsAMutex(t *testing.T) {
	for _, mode := range []flockctx.Mode{flockctx.Exclusive, flockctx.Shared} {
		t.Run(mode.String(), func(t *testing.T) {
			l := newHandle(t, tempPath(t), &flockctx.Options{Mode: mode})
			const goroutines, rounds = 8, 300
			var wg sync.WaitGroup
			var inside atomic.Int32
			count := 0 // guarded by l alone
			for range goroutines {
				wg.Go(func() {
					for range rounds {
						if err := l.Lock(t.Context()); err != nil {
							t.Error(err)
							return
						}
						if n := inside.Add(1); n != 1 {
							t.Errorf("%d inside", n)
						}
						count++
						if count%64 == 0 {
							runtime.Gosched()
						}
						inside.Add(-1)
						if err := l.Unlock(); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			if count != goroutines*rounds {
				t.Errorf("count %d, want %d", count, goroutines*rounds)
			}
		})
	}
}

// Trap 3: the handle's mutex is held during the blocking call, so that a second
// caller's deadline comes late.
func TestTrap3DeadlineWhileTheHandleIsBusy(t *testing.T) {
	for _, wait := range waits {
		t.Run(wait.String(), func(t *testing.T) {
			path := tempPath(t)
			holder := startHolder(t, path, flockctx.Options{})
			l := newHandle(t, path, &flockctx.Options{Wait: wait})
			first := async(func() error { return l.Lock(t.Context()) })
			eventually(t, "the first waits for the other process", func() bool {
				return flockctx.WaitingOutside() == 1
			})
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			second := async(func() error { return l.Lock(ctx) })
			wantErr(t, soon(t, second, "a deadline behind a busy handle"), context.DeadlineExceeded)
			// Nothing else of the handle waits either.
			wantErr(t, l.TryLock(), flockctx.ErrLocked)
			wantErr(t, l.Unlock(), flockctx.ErrNotLocked)
			wantErr(t, l.Convert(t.Context(), flockctx.Shared), flockctx.ErrNotLocked)
			if l.Locked() || l.Name() != path || l.Mode() != flockctx.Exclusive {
				t.Error("wrong state")
			}
			l.File()
			select {
			case err := <-first:
				t.Fatalf("the first has returned: %v", err)
			default:
			}
			holder.must("unlock")
			must(t, soon(t, first, "Lock after the other process unlocked"))
		})
	}
}

func TestCloseWakesWaiters(t *testing.T) {
	t.Run("of a held handle", func(t *testing.T) {
		l := mustLock(t, tempPath(t), nil)
		var waiting []<-chan error
		for range 5 {
			waiting = append(waiting, async(func() error { return l.Lock(context.Background()) }))
		}
		eventually(t, "five wait", func() bool { return flockctx.HandleWaiters(l) == 5 })
		must(t, l.Close())
		for _, ch := range waiting {
			wantErr(t, soon(t, ch, "Lock after Close"), fs.ErrClosed)
		}
	})
	for _, wait := range waits {
		t.Run("of a handle that waits for another handle,"+wait.String(), func(t *testing.T) {
			path := tempPath(t)
			mustLock(t, path, nil)
			l := newHandle(t, path, &flockctx.Options{Wait: wait})
			first := async(func() error { return l.Lock(context.Background()) })
			eventually(t, "it waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
			second := async(func() error { return l.Lock(context.Background()) })
			eventually(t, "the second waits", func() bool { return flockctx.HandleWaiters(l) == 1 })
			must(t, l.Close())
			wantErr(t, soon(t, first, "Lock after Close"), fs.ErrClosed)
			wantErr(t, soon(t, second, "Lock after Close"), fs.ErrClosed)
		})
		t.Run("of a handle that waits for another process,"+wait.String(), func(t *testing.T) {
			path := tempPath(t)
			startHolder(t, path, flockctx.Options{})
			l := newHandle(t, path, &flockctx.Options{Wait: wait})
			first := async(func() error { return l.Lock(context.Background()) })
			eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
			second := async(func() error { return l.Lock(context.Background()) })
			eventually(t, "the second waits", func() bool { return flockctx.HandleWaiters(l) == 1 })
			must(t, l.Close())
			wantErr(t, soon(t, first, "Lock after Close"), fs.ErrClosed)
			wantErr(t, soon(t, second, "Lock after Close"), fs.ErrClosed)
		})
	}
}

// Trap 16, first half: mode "w" of a Python library empties the file under another
// holder's lock.
func TestTrap16TruncationOnlyUnderTheLock(t *testing.T) {
	o := &flockctx.Options{Flag: os.O_RDWR | os.O_CREATE | os.O_TRUNC}
	content := []byte("content")
	path := tempPath(t)
	must(t, os.WriteFile(path, content, 0o600))
	unchanged := func() {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	holder := mustLock(t, path, nil)
	_, err := flockctx.TryLock(path, o)
	wantErr(t, err, flockctx.ErrLocked)
	unchanged()

	ctx, cancel := context.WithCancel(t.Context())
	waiting := async(func() error { _, err := flockctx.Lock(ctx, path, o); return err })
	eventually(t, "it waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
	unchanged()
	cancel()
	wantErr(t, soon(t, waiting, "Lock after cancel"), context.Canceled)
	unchanged()

	l := newHandle(t, path, o)
	waiting = async(func() error { return l.Lock(t.Context()) })
	eventually(t, "it waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
	unchanged()
	must(t, holder.Close())
	must(t, soon(t, waiting, "Lock after Close of the holder"))
	if st, err := os.Stat(path); err != nil || st.Size() != 0 {
		t.Fatalf("not truncated: %v, %v", st, err)
	}
	// The file is open now: nothing is opened again, and nothing truncated.
	_, err = l.File().Write(content)
	must(t, err)
	must(t, l.Unlock())
	must(t, l.Lock(t.Context()))
	unchanged()
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

func TestLockFile(t *testing.T) {
	queues := flockctx.Queues()
	path := tempPath(t)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	l, err := flockctx.LockFile(t.Context(), f, nil)
	must(t, err)
	if l.File() != f || l.Name() != path {
		t.Errorf("file %v, name %q", l.File(), l.Name())
	}
	wantLocked(t, path, flockctx.Options{})
	_, err = flockctx.TryLockFile(f, nil) // handles on one open file exclude each other, too
	wantErr(t, err, flockctx.ErrLocked)
	must(t, l.Unlock())
	wantFree(t, path, flockctx.Options{})
	must(t, l.Lock(t.Context()))
	must(t, l.Close())
	wantFree(t, path, flockctx.Options{})
	if _, err := f.Stat(); err != nil {
		t.Errorf("Close closed the caller's file: %v", err)
	}

	l, err = flockctx.TryLockFile(f, &flockctx.Options{Remove: true})
	must(t, err)
	if runtime.GOOS != "windows" { // which does not remove a file that os.OpenFile has open
		must(t, os.Remove(path)) // its name does not matter
	}
	must(t, l.Convert(t.Context(), flockctx.Shared))
	must(t, l.Close())

	must(t, f.Close())
	_, err = flockctx.LockFile(t.Context(), f, nil)
	wantErr(t, err, fs.ErrClosed)
	_, err = flockctx.LockFile(t.Context(), nil, nil)
	wantErr(t, err, fs.ErrInvalid)
	if n := flockctx.Queues(); n > queues {
		t.Errorf("%d queues before, %d after", queues, n)
	}
}

// Two shared handles on one open file have one lock in the kernel.
func TestLockFileSharedTwice(t *testing.T) {
	path := tempPath(t)
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	o := &flockctx.Options{Mode: flockctx.Shared}
	a, err := flockctx.LockFile(t.Context(), f, o)
	must(t, err)
	b, err := flockctx.LockFile(t.Context(), f, o)
	must(t, err)
	other := startAgent(t, path, flockctx.Options{})
	must(t, a.Close())
	if s := other.do("trylock"); s != "locked" {
		t.Errorf("while one of two handles holds the lock, another process: %s", s)
	}
	must(t, b.Close())
	other.must("trylock")
}

func TestClosingTheCallersFileReleasesItsLock(t *testing.T) {
	for _, mode := range []flockctx.Mode{flockctx.Exclusive, flockctx.Shared} {
		t.Run(mode.String(), func(t *testing.T) {
			path := tempPath(t)
			o := &flockctx.Options{Mode: mode}
			other := startAgent(t, path, flockctx.Options{})
			f, err := os.Create(path)
			must(t, err)
			l, err := flockctx.LockFile(t.Context(), f, o)
			must(t, err)
			must(t, f.Close())
			wantErr(t, l.Unlock(), fs.ErrClosed)
			wantErr(t, l.Unlock(), flockctx.ErrNotLocked)
			wantErr(t, l.Lock(t.Context()), fs.ErrClosed)

			// The same number, another open file: it has to be locked for real.
			f, err = os.Open(path)
			must(t, err)
			defer f.Close()
			again, err := flockctx.LockFile(t.Context(), f, o)
			must(t, err)
			if s := other.do("trylock"); s != "locked" {
				t.Errorf("another process: %s", s)
			}
			must(t, again.Close())
			other.must("trylock")
		})
	}
}

func TestClosingFileOfAHandle(t *testing.T) {
	path := tempPath(t)
	l := mustLock(t, path, nil)
	must(t, l.File().Close())
	wantErr(t, l.Unlock(), fs.ErrClosed)
	if l.Locked() {
		t.Error("still locked")
	}
	must(t, l.Lock(t.Context())) // opens it again
	wantLocked(t, path, flockctx.Options{})
	must(t, l.Unlock())
	must(t, l.Lock(t.Context()))
	must(t, l.File().Close())
	l.Close()
	wantFree(t, path, flockctx.Options{})
}

func TestFile(t *testing.T) {
	path := tempPath(t)
	l := newHandle(t, path, nil)
	if l.File() != nil {
		t.Error("a file before the first Lock")
	}
	must(t, l.Lock(t.Context()))
	f := l.File()
	if f == nil || f != l.File() || f.Name() != path {
		t.Fatalf("File is %v, then %v", f, l.File())
	}
	_, err := f.WriteAt([]byte("x"), 0)
	must(t, err)
	must(t, l.Unlock())
	must(t, l.Lock(t.Context()))
	if l.File() != f {
		t.Error("another File after Unlock and Lock")
	}
	must(t, l.Close())
	if _, err := f.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Every method may be called at any time; the race detector looks on.
func TestMethodsAreSafeForConcurrentUse(t *testing.T) {
	path := tempPath(t)
	queues := flockctx.Queues()
	l := flockctx.New(path, &flockctx.Options{Flag: os.O_RDWR | os.O_CREATE | os.O_TRUNC, Poll: flockctx.Backoff{Min: time.Millisecond, Max: time.Millisecond}})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	loop := func(fn func()) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					fn()
				}
			}
		})
	}
	loop(func() { l.File(); l.Mode(); l.Locked(); l.Name(); runtime.Gosched() })
	loop(func() { l.Unlock(); runtime.Gosched() })
	loop(func() { l.TryLock() })
	loop(func() {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Microsecond)
		defer cancel()
		l.Lock(ctx)
	})
	loop(func() { l.Convert(t.Context(), flockctx.Shared); l.Convert(t.Context(), flockctx.Exclusive) })
	loop(func() { // other handles, which make files stale and locks busy
		o, err := flockctx.TryLock(path, &flockctx.Options{Remove: true})
		if err == nil {
			o.Close()
		}
		time.Sleep(time.Millisecond)
	})
	time.Sleep(300 * time.Millisecond)
	must(t, l.Close())
	close(stop)
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	soon(t, done, "the goroutines end after Close")
	wantFree(t, path, flockctx.Options{})
	if n := flockctx.Queues(); n > queues {
		t.Errorf("%d queues before, %d after", queues, n)
	}
}

func TestOptionsThatCannotBeMeant(t *testing.T) {
	path := tempPath(t)
	for name, o := range map[string]flockctx.Options{
		"mode":                 {Mode: 2},
		"negative mode":        {Mode: -1},
		"wait":                 {Wait: 3},
		"mechanism":            {Mechanism: 9},
		"negative range":       {Mechanism: flockctx.OFD, Start: -1},
		"range that overflows": {Mechanism: flockctx.OFD, Start: 1 << 62, Length: 1 << 62},
		"negative interval":    {Poll: flockctx.Backoff{Min: -1}},
		"permissions":          {Perm: fs.ModeDir | 0o700},
	} {
		_, err := flockctx.Lock(t.Context(), path, &o)
		if pathErr, ok := errors.AsType[*fs.PathError](err); !ok || pathErr.Path != path || errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := flockctx.LockAll(t.Context(), []string{path}, &o); err == nil {
			t.Errorf("%s: LockAll took it", name)
		}
	}
	for name, o := range map[string]flockctx.Options{
		"POSIX":           {Mechanism: flockctx.POSIX},
		"lease":           {Mechanism: flockctx.Lease},
		"range with BSD":  {Start: 1},
		"length with BSD": {Length: 1},
	} {
		_, err := flockctx.TryLock(path, &o)
		if pathErr, ok := errors.AsType[*fs.PathError](err); !ok || pathErr.Path != path || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the file was created")
	}
	wantErr(t, mustLock(t, path, nil).Convert(t.Context(), 7), errInvalid)
}

func TestOptionsAreCopied(t *testing.T) {
	path := tempPath(t)
	o := flockctx.Options{Mode: flockctx.Shared}
	l := newHandle(t, path, &o)
	o.Mode = flockctx.Exclusive
	must(t, l.Lock(t.Context()))
	wantFree(t, path, flockctx.Options{Mode: flockctx.Shared})
}

func TestPathsThatCannotBeLocked(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for name, c := range map[string]struct {
		path string
		err  error
	}{
		"empty":          {"", fs.ErrNotExist},
		"NUL":            {dir + "/a\x00b", errInvalid},
		"missing folder": {filepath.Join(dir, "missing", "x"), fs.ErrNotExist},
		"file as folder": {filepath.Join(file, "x"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			for call, err := range map[string]error{
				"Lock":    second(flockctx.Lock(t.Context(), c.path, nil)),
				"TryLock": second(flockctx.TryLock(c.path, nil)),
				"LockAll": second(flockctx.LockAll(t.Context(), []string{file, c.path}, nil)),
			} {
				pathErr, ok := errors.AsType[*fs.PathError](err)
				if !ok || pathErr.Path != c.path || pathErr.Op == "" {
					t.Fatalf("%s: got %v (%T), want an *fs.PathError with the path", call, err, err)
				}
				if c.err != nil && !errors.Is(err, c.err) {
					t.Errorf("%s: %v does not match %v", call, err, c.err)
				}
				if errors.Is(err, flockctx.ErrLocked) {
					t.Errorf("%s: %v says that the lock is taken", call, err)
				}
			}
		})
	}
	wantFree(t, file, flockctx.Options{})
}

func second[T any](_ T, err error) error { return err }

func TestLockDirectory(t *testing.T) {
	dir := t.TempDir()
	if runtime.GOOS == "windows" {
		_, err := flockctx.TryLock(dir, nil)
		wantErr(t, err, errors.ErrUnsupported)
		return
	}
	l := mustLock(t, dir, nil)
	wantLocked(t, dir, flockctx.Options{})
	if st, err := l.File().Stat(); err != nil || !st.IsDir() {
		t.Errorf("%v, %v", st, err)
	}
	must(t, l.Close())
	wantFree(t, dir, flockctx.Options{})
}

func TestPermissionsOfANewFile(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no permission bits")
	}
	for want, o := range map[fs.FileMode]*flockctx.Options{0o600: nil, 0o640: {Perm: 0o640}} {
		path := tempPath(t)
		mustLock(t, path, o)
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%v, %v, want %v", st.Mode(), err, want)
		}
	}
}

func TestFlagWithoutCreate(t *testing.T) {
	path := tempPath(t)
	_, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Flag: os.O_RDWR})
	wantErr(t, err, fs.ErrNotExist)
	must(t, os.WriteFile(path, nil, 0o600))
	l := mustLock(t, path, &flockctx.Options{Flag: os.O_WRONLY | os.O_APPEND})
	_, err = l.File().Write([]byte("x"))
	must(t, err)
	must(t, l.Close())
	_, err = flockctx.Lock(t.Context(), path, &flockctx.Options{Flag: os.O_RDWR | os.O_CREATE | os.O_EXCL})
	wantErr(t, err, fs.ErrExist)
}

// Trap 15: a finalizer that panics, or one that silently releases.
// A held lock stays held though the program forgot the handle.
func TestTrap15CollectorKeepsAHeldLock(t *testing.T) {
	path := tempPath(t)
	before := flockctx.Queues()
	func() {
		l, err := flockctx.Lock(t.Context(), path, nil)
		must(t, err)
		_ = l.File()
		l, err = flockctx.Lock(t.Context(), path+"2", &flockctx.Options{Mode: flockctx.Shared})
		must(t, err)
		// Unlocked and locked again: it has the guard of a forgotten handle.
		must(t, l.Unlock())
		must(t, l.Lock(t.Context()))
	}()
	other, other2 := startAgent(t, path, flockctx.Options{}), startAgent(t, path+"2", flockctx.Options{})
	for range 10 {
		runtime.GC()
		time.Sleep(time.Millisecond) // for cleanups to run
	}
	for _, a := range []*agent{other, other2} {
		if s := a.do("trylock"); s != "locked" {
			t.Errorf("another process: %s", s)
		}
	}
	wantLocked(t, path, flockctx.Options{})
	// The test knows where they are.
	flockctx.CloseHolders()
	other.must("trylock")
	other2.must("trylock")
	if n := flockctx.Queues(); n > before {
		t.Errorf("%d queues, %d before", n, before)
	}
}

// Trap 15, the other side: an unlocked, forgotten handle gives its descriptor back.
func TestTrap15CollectorClosesAnUnlockedHandle(t *testing.T) {
	dir := t.TempDir()
	before, queues := countDescriptors(), flockctx.Queues()
	func() {
		for i := range 50 {
			l := flockctx.New(filepath.Join(dir, fmt.Sprint(i)), nil)
			must(t, l.Lock(t.Context()))
			if i%2 == 0 {
				l.File()
			}
			must(t, l.Unlock())
			if i%3 == 0 {
				l.File()
			}
			if i%5 == 0 {
				must(t, l.Lock(t.Context()))
				must(t, l.Unlock())
			}
		}
	}()
	eventually(t, "the descriptors are given back", func() bool {
		runtime.GC()
		return countDescriptors() <= before && flockctx.Queues() == queues
	})
}

// The File of a forgotten handle stays open for who kept it, and closes itself.
func TestFileOutlivesItsHandle(t *testing.T) {
	path := tempPath(t)
	file := func() *os.File {
		l, err := flockctx.Lock(t.Context(), path, nil)
		must(t, err)
		defer l.Unlock()
		return l.File()
	}()
	for range 5 {
		collect()
		mustLock(t, tempPath(t), nil) // takes a number that is free
	}
	_, err := file.WriteString("content")
	must(t, err)
	must(t, file.Close())
	if b, err := os.ReadFile(path); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestStrings(t *testing.T) {
	for want, got := range map[string]fmt.Stringer{
		"exclusive": flockctx.Exclusive, "shared": flockctx.Shared, "Mode(5)": flockctx.Mode(5),
		"auto": flockctx.WaitAuto, "block": flockctx.WaitBlock, "poll": flockctx.WaitPoll, "Wait(5)": flockctx.Wait(5),
		"flock": flockctx.BSD, "ofd": flockctx.OFD, "posix": flockctx.POSIX, "lease": flockctx.Lease, "Mechanism(9)": flockctx.Mechanism(9),
	} {
		if got.String() != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A shared borrowed handle that had to wait for another process counts as well.
func TestLockFileSharedAfterWaiting(t *testing.T) {
	for _, wait := range waits {
		path := tempPath(t)
		holder := startHolder(t, path, flockctx.Options{})
		f, err := os.Open(path)
		must(t, err)
		defer f.Close()
		o := &flockctx.Options{Mode: flockctx.Shared, Wait: wait}
		first := async(func() error { _, err := flockctx.LockFile(t.Context(), f, o); return err })
		var l *flockctx.Flock
		waiting := async(func() error { var err error; l, err = flockctx.LockFile(t.Context(), f, o); return err })
		eventually(t, "one waits for the other process", func() bool {
			return flockctx.WaitingOutside() == 1 && flockctx.Waiters(path, flockctx.BSD) == 1
		})
		holder.must("unlock")
		must(t, soon(t, first, "LockFile"))
		must(t, soon(t, waiting, "LockFile"))
		must(t, l.Close())
		if s := holder.do("trylock"); s != "locked" {
			t.Errorf("while one of two handles holds the lock, another process: %s", s)
		}
		flockctx.CloseHolders()
		holder.must("trylock")
	}
}
