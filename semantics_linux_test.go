//go:build linux

package flockctx_test

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// A lease makes open(2) wait until its holder gives it up, or for 45 s. No context
// could end that.
func TestALeaseIsWaitedOutWithinTheContext(t *testing.T) {
	signal.Ignore(syscall.SIGIO) // with which the kernel asks for the lease back
	defer signal.Reset(syscall.SIGIO)
	path := tempPath(t)
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("no leases on this file system: %v", err)
	}
	_, err = flockctx.TryLock(path, nil)
	wantErr(t, err, flockctx.ErrLocked)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = flockctx.Lock(ctx, path, nil)
	wantErr(t, err, context.DeadlineExceeded)

	done := async(func() error {
		l, err := flockctx.Lock(t.Context(), path, nil)
		if err == nil {
			err = l.Close()
		}
		return err
	})
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	must(t, err)
	must(t, soon(t, done, "Lock after the lease"))
}

// Who asks for all signals is told of the one that ends a wait.
func TestNotifyOfAllSignalsSeesTheInterrupt(t *testing.T) {
	path := tempPath(t)
	startAgent(t, path, flockctx.Options{}).must("lock")
	all := make(chan os.Signal, 100)
	signal.Notify(all)
	defer signal.Stop(all)
	ctx, cancel := context.WithCancel(t.Context())
	done := async(func() error {
		_, err := flockctx.Lock(ctx, path, &flockctx.Options{Wait: flockctx.WaitBlock})
		return err
	})
	eventually(t, "it waits in the kernel", func() bool { return flockctx.Blocked() == 1 })
	cancel()
	wantErr(t, soon(t, done, "Lock after cancel"), context.Canceled)
	timeout := time.After(patience)
	for {
		select {
		case s := <-all:
			if n, ok := s.(syscall.Signal); ok && n >= 35 {
				return
			}
		case <-timeout:
			t.Fatal("the signal was not delivered; say so in docs/semantics.md")
		}
	}
}
