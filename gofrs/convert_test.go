package flock_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/gofrs"
)

func TestUpgradeAndDowngrade(t *testing.T) {
	path := file(t)
	f, other := flock.New(path), flock.New(path)
	must(t, f.RLock())
	must(t, f.Lock())
	states(t, f, true, false)
	took(t, false)(other.TryRLock())
	must(t, f.RLock())
	states(t, f, false, true)
	took(t, true)(other.TryRLock())
	must(t, other.Unlock())
	took(t, true)(f.TryLock())
	states(t, f, true, false)
	took(t, true)(f.TryRLock())
	took(t, true)(f.TryLockContext(t.Context(), time.Hour))
	states(t, f, true, false)
	took(t, true)(f.TryRLockContext(t.Context(), time.Hour))
	states(t, f, false, true)
	must(t, f.Unlock())
	took(t, true)(other.TryLock())
	must(t, other.Unlock())
}

// An upgrade that fails keeps the shared lock, whoever is in the way.
func TestFailedUpgrade(t *testing.T) {
	for name, inTheWay := range map[string]func(*testing.T, string) func(){
		"handle": func(t *testing.T, path string) func() {
			f := flock.New(path)
			must(t, f.RLock())
			return func() { must(t, f.Close()) }
		},
		"process": func(t *testing.T, path string) func() { return hold(t, path, true) },
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t)
			f := flock.New(path)
			must(t, f.RLock())
			leave := inTheWay(t, path)
			took(t, false)(f.TryLock())
			states(t, f, false, true)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
			defer cancel()
			if ok, err := f.TryLockContext(ctx, time.Hour); ok || err != context.DeadlineExceeded {
				t.Fatalf("%v, %v", ok, err)
			}
			states(t, f, false, true)
			leave()
			took(t, false)(flock.New(path).TryLock()) // f holds it, not only says so
			took(t, true)(f.TryLock())
			must(t, f.Close())
		})
	}
}

// An upgrade is on the file that the path names too.
func TestUpgradeOfARemovedFile(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIP: the name of a removed file stays until the file is closed")
	}
	path := file(t)
	for _, taken := range []bool{false, true} {
		f, other := flock.New(path), flock.New(path)
		must(t, f.RLock())
		must(t, os.Remove(path))
		if _, err := f.Stat(); err != nil {
			t.Errorf("of the locked file: %v", err)
		}
		if !taken {
			took(t, true)(f.TryLock())
			states(t, f, true, false)
			took(t, false)(other.TryLock())
			must(t, f.Unlock())
			continue
		}
		must(t, other.Lock())
		if ok, err := f.TryLock(); ok || !errors.Is(err, flockctx.ErrNotLocked) {
			t.Errorf("the shared lock is lost, and the other one taken: %v, %v", ok, err)
		}
		states(t, f, false, false)
		must(t, other.Unlock())
	}
}

// An upgrade waits for the other holders.
func TestUpgradeWaits(t *testing.T) {
	path := file(t)
	release := hold(t, path, true)
	f := flock.New(path)
	must(t, f.RLock())
	time.AfterFunc(10*time.Millisecond, release)
	took(t, true)(f.TryLockContext(t.Context(), time.Hour))
	states(t, f, true, false)
	must(t, f.Close())
}

// Of two that share a lock and both want it alone, each gets it in the end, since an
// upgrade may let others in before.
func TestTwoUpgrades(t *testing.T) {
	path := file(t)
	done := make(chan error, 2)
	ready, both := make(chan struct{}), make(chan struct{})
	for range 2 {
		go func() {
			f := flock.New(path)
			err := f.RLock()
			ready <- struct{}{}
			<-both
			if err == nil {
				err = f.Lock()
			}
			f.Close()
			done <- err
		}()
	}
	<-ready
	<-ready
	close(both)
	must(t, <-done)
	must(t, <-done)
}
