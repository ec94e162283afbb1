package flock_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx/gofrs"
)

func TestGoroutinesHaveNumbers(t *testing.T) {
	mine := flock.Self()
	if mine == 0 || flock.Self() != mine {
		t.Errorf("goroutine %d, then %d", mine, flock.Self())
	}
	seen := map[any]bool{mine: true}
	for range 100 {
		elsewhere(func() {
			g := flock.Self()
			if seen[g] {
				t.Errorf("goroutine %d twice", g)
			}
			seen[g] = true
		})
	}
}

// One handle in many goroutines: a mutex, as the race detector agrees.
func TestGoroutinesTakeTurns(t *testing.T) {
	f := flock.New(file(t))
	counter, inside := 0, 0
	work := func(lock func() error) {
		if err := lock(); err != nil {
			t.Error(err)
			return
		}
		if err := lock(); err != nil { // again, which does not wait
			t.Error(err)
		}
		inside++
		counter += inside
		inside--
		if err := f.Unlock(); err != nil {
			t.Error(err)
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				work(f.Lock)
				work(func() error {
					_, err := f.TryLockContext(t.Context(), time.Hour)
					return err
				})
			}
		})
	}
	wg.Wait()
	if counter != 800 {
		t.Errorf("%d times inside, and at times together; want 800", counter)
	}
}

// The lock is the goroutine's that took it; anybody may release it.
func TestLockBelongsToItsGoroutine(t *testing.T) {
	f := flock.New(file(t))
	must(t, f.Lock())
	elsewhere(func() {
		took(t, false)(f.TryLock())
		took(t, false)(f.TryRLock())
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		if ok, err := f.TryLockContext(ctx, 0); ok || err != context.DeadlineExceeded {
			t.Errorf("%v, %v", ok, err)
		}
		states(t, f, true, false)
		must(t, f.Unlock())
		took(t, true)(f.TryLock())
	})
	took(t, false)(f.TryLock())
	states(t, f, true, false)
	must(t, f.Close())
	states(t, f, false, false)
}

// Readers share one handle, and each releases its own lock.
func TestReadersShareAHandle(t *testing.T) {
	path := file(t)
	f := flock.New(path)
	must(t, f.RLock())
	elsewhere(func() {
		must(t, f.RLock())
		took(t, false)(f.TryLock())
		must(t, f.Unlock())
	})
	states(t, f, false, true)
	took(t, false)(flock.New(path).TryLock())
	elsewhere(func() { must(t, f.RLock()) })
	elsewhere(func() { must(t, f.RLock()) })
	must(t, f.Unlock()) // its own
	states(t, f, false, true)
	must(t, f.Unlock()) // those of goroutines that have ended
	states(t, f, false, false)
	other := flock.New(path)
	took(t, true)(other.TryLock())
	must(t, other.Close())
}

// A Lock that waits holds up no other call.
func TestNobodyWaitsForAWaiter(t *testing.T) {
	path := file(t)
	release := hold(t, path, false)
	f := flock.New(path)
	got := make(chan error, 1)
	go func() { got <- f.Lock() }()
	time.Sleep(20 * time.Millisecond)
	states(t, f, false, false)
	took(t, false)(f.TryLock())
	must(t, f.Unlock())
	if _, err := f.Stat(); err != nil {
		t.Error(err)
	}
	release()
	must(t, <-got)
	states(t, f, true, false)
	must(t, f.Unlock())
}

// Goroutines that lock, convert, release and ask at random leave a handle that is free.
func TestManyAtOnce(t *testing.T) {
	f := flock.New(file(t))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				switch (i + j) % 5 {
				case 0:
					f.TryLockContext(ctx, 0)
				case 1:
					f.TryRLockContext(ctx, 0)
				case 2:
					f.TryLock()
				case 3:
					f.TryRLock()
				case 4:
					f.Stat()
				}
				cancel()
				if j%3 == 0 {
					if err := f.Unlock(); err != nil {
						t.Error(err)
					}
				}
			}
			f.Unlock()
		})
	}
	wg.Wait()
	must(t, f.Unlock())
	states(t, f, false, false)
	took(t, true)(f.TryLock())
	must(t, f.Unlock())
}
