//go:build linux

package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/flockctx/flockctx"
)

// How many threads waiting takes.

// 200 blocking waiters took 199 extra threads. Goroutines that wait for one
// file take one.
func TestWaitersTakeNoThreads(t *testing.T) {
	path := tempPath(t)
	release := hold(t, path)
	before := countThreads()
	ctx, cancel := context.WithCancel(t.Context())
	var waiting []<-chan error
	for range 200 {
		waiting = append(waiting, async(func() error { _, err := flockctx.Lock(ctx, path, nil); return err }))
	}
	eventually(t, "all wait", func() bool {
		return flockctx.WaitingOutside() == 1 && flockctx.Waiters(path, flockctx.BSD) == 199
	})
	if n := countThreads() - before; n > 40+coreThreads() { // those that opened the files
		t.Errorf("%d more threads", n)
	}
	cancel()
	for _, ch := range waiting {
		wantErr(t, soon(t, ch, "Lock after cancel"), context.Canceled)
	}
	release()
}

// Past the cap of waits in the kernel, a Lock polls, and takes a place there when
// one is free.
func TestCapOfWaitsInTheKernel(t *testing.T) {
	run(t, "cap", []string{t.TempDir()}) // for the threads, which stay
}

var _ = registerCommand("cap", func(args []string) error {
	const more = 30
	n := flockctx.MaxBlocked() + more
	var releases []func()
	paths := make([]string, n)
	for i := range n {
		paths[i] = filepath.Join(args[0], fmt.Sprint(i))
		release, err := holdRaw(paths[i])
		if err != nil {
			return err
		}
		releases = append(releases, release)
	}
	done := make([]chan error, n)
	cancels := make([]context.CancelFunc, n)
	start := func(i int) {
		var ctx context.Context
		ctx, cancels[i] = context.WithCancel(context.Background())
		done[i] = make(chan error, 1)
		go func() { _, err := flockctx.Lock(ctx, paths[i], inKernel()); done[i] <- err }()
	}
	for i := range flockctx.MaxBlocked() {
		start(i)
	}
	if err := waitUntil("all places are taken", func() bool { return flockctx.Blocked() == flockctx.MaxBlocked() }); err != nil {
		return err
	}
	for i := flockctx.MaxBlocked(); i < n; i++ {
		start(i)
	}
	if err := waitUntil("the rest polls", func() bool { return flockctx.Pollers() == more }); err != nil {
		return err
	}
	if threads := countThreads(); threads > flockctx.MaxBlocked()+50+coreThreads() {
		return fmt.Errorf("%d threads", threads)
	}
	// A poller is granted and cancelled like any other.
	releases[n-1]()
	if err := <-done[n-1]; err != nil {
		return err
	}
	cancels[n-2]()
	if err := <-done[n-2]; !errors.Is(err, context.Canceled) {
		return err
	}
	// Places that become free are taken.
	for i := range 10 {
		cancels[i]()
		if err := <-done[i]; !errors.Is(err, context.Canceled) {
			return err
		}
	}
	if err := waitUntil("pollers take the free places", func() bool { return flockctx.Pollers() == more-2-10 }); err != nil {
		return err
	}
	for i := 10; i < n-2; i++ {
		releases[i]()
		if err := <-done[i]; err != nil {
			return err
		}
	}
	return nil
})
