package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

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

// raceClose calls use in a goroutine, again and again until it fails, and Close
// beside it. It returns the last error of use, which has to be that of Close.
func raceClose(t *testing.T, l *flockctx.Flock, use func() error) {
	t.Helper()
	running := make(chan struct{})
	done := async(func() error {
		run := sync.OnceFunc(func() { close(running) })
		defer run()
		for i := 0; ; i++ {
			if i == 3 {
				run()
			}
			if err := use(); err != nil {
				return err
			}
		}
	})
	soon(t, running, "the loop")
	for end := time.Now().Add(time.Duration(rand.IntN(20)) * time.Microsecond); time.Now().Before(end); {
	}
	must(t, soon(t, async(l.Close), "Close"))
	wantErr(t, soon(t, done, "the loop after Close"), fs.ErrClosed)
	if l.Locked() || l.File() != nil {
		t.Fatalf("after Close: locked %v, file %v", l.Locked(), l.File())
	}
}

// A Close that comes while one goroutine unlocks finds the handle unlocked, locked by
// its next Lock, or on the way to that: nothing of it may be left, and no other file
// be closed.
func TestCloseBesideUnlockAndLock(t *testing.T) {
	path := tempPath(t)
	collect() // what other tests forgot, and could hide that something is left
	descriptors, queues := countDescriptors(), flockctx.Queues()
	handles := 4000
	if testing.Short() {
		handles = 1000
	}
	for i := range handles {
		l := flockctx.New(path, nil)
		use := func() error {
			if err := l.Lock(context.Background()); err != nil {
				return err
			}
			return l.Unlock()
		}
		if i%2 == 0 { // with an os.File, and two modes
			use = func() error {
				if err := l.Lock(context.Background()); err != nil {
					return err
				}
				if err := l.Convert(context.Background(), 1-l.Mode()); err != nil {
					return err
				}
				return l.Unlock()
			}
		}
		raceClose(t, l, use)
		wantFree(t, path, flockctx.Options{})
	}
	if n := countDescriptors(); n > descriptors {
		t.Errorf("%d descriptors before, %d after", descriptors, n)
	}
	if n := flockctx.Queues(); n > queues { // less: what other tests forgot was collected
		t.Errorf("%d queues before, %d after", queues, n)
	}
}

// The same where Convert waits for another process, and Close interrupts it.
func TestCloseBesideAConvertThatWaits(t *testing.T) {
	handles := 300
	if testing.Short() {
		handles = 60
	}
	for _, mechanism := range mechanisms() {
		for _, wait := range waits {
			t.Run(fmt.Sprintf("%v,%v", mechanism, wait), func(t *testing.T) {
				path := tempPath(t)
				o := flockctx.Options{Mechanism: mechanism, Mode: flockctx.Shared, Wait: wait}
				reader := startHolder(t, path, o)
				collect()
				descriptors, queues := countDescriptors(), flockctx.Queues()
				for range handles {
					l := flockctx.New(path, &o)
					round := 0
					raceClose(t, l, func() error {
						if err := l.Lock(context.Background()); err != nil {
							return err
						}
						if round++; round > 4 {
							err := l.Convert(context.Background(), flockctx.Exclusive)
							if err == nil {
								err = errors.New("exclusive beside a shared holder")
							}
							return err
						}
						return l.Unlock()
					})
					wantFree(t, path, o)
				}
				if n := countDescriptors(); n > descriptors {
					t.Errorf("%d descriptors before, %d after", descriptors, n)
				}
				if n := flockctx.Queues(); n > queues { // less: what other tests forgot was collected
					t.Errorf("%d queues before, %d after", queues, n)
				}
				reader.must("unlock")
				o.Mode = flockctx.Exclusive
				wantFree(t, path, o)
			})
		}
	}
}

// A trap: one handle in 8 goroutines, and 8 of them inside together.
func TestOneHandleInManyGoroutinesIsAMutex(t *testing.T) {
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

// A trap: the handle's mutex is held during the blocking call, so that a second
// caller's deadline comes late.
func TestDeadlineWhileTheHandleIsBusy(t *testing.T) {
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
