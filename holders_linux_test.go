//go:build linux

package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flockctx/flockctx"
)

// What Holders says of handles and goroutines of this process. What it says of other
// processes is tested in internal/lockview.

// holders is Holders, and skips the test where the system has no /proc/locks.
func holders(t *testing.T, path string) []flockctx.Holder {
	t.Helper()
	hs, err := flockctx.Holders(path)
	if _, statErr := os.Stat("/proc/locks"); statErr != nil && errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("SKIP: %s: %v", t.Name(), err)
	}
	must(t, err)
	return hs
}

// waitingHolders looks until n wait, and one holds the lock.
func waitingHolders(t *testing.T, path string, n int) (hs []flockctx.Holder) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d wait", n), func() bool {
		hs = holders(t, path)
		waiting := 0
		for _, h := range hs {
			if h.Waiting {
				waiting++
			}
		}
		return waiting == n && len(hs) == n+1
	})
	return hs
}

func TestHoldersOwnProcess(t *testing.T) {
	path := tempPath(t)
	for _, o := range []flockctx.Options{{}, {Mode: flockctx.Shared}, {Mechanism: flockctx.OFD}, {Mechanism: flockctx.OFD, Start: 4, Length: 3}} {
		l, err := flockctx.TryLock(path, &o)
		must(t, err)
		for _, p := range []string{path, path + ".link"} {
			if p != path {
				os.Symlink(path, p)
			}
			hs := holders(t, p)
			if len(hs) != 1 {
				t.Fatalf("with %+v: %+v", o, hs)
			}
			if h := hs[0]; h.PID != os.Getpid() || h.Waiting || h.Mode != o.Mode || h.Mechanism != o.Mechanism ||
				h.Start != o.Start || h.Length != o.Length || h.Path != p || h.Others != nil || h.Device == 0 || h.Inode == 0 ||
				!strings.Contains(h.Command, filepath.Base(os.Args[0])) {
				t.Errorf("with %+v: %+v", o, h)
			}
		}
		must(t, l.Close())
		if hs := holders(t, path); len(hs) != 0 {
			t.Errorf("after Close: %+v", hs)
		}
	}
}

// One goroutine of this process waits in the kernel or polls, the others where the
// kernel does not see them. Each counts once.
func TestHoldersWaitersInThisProcess(t *testing.T) {
	for _, o := range []flockctx.Options{
		{}, {Wait: flockctx.WaitPoll}, {Mechanism: flockctx.OFD, Start: 10, Length: 5},
		{Mechanism: flockctx.OFD, Start: 10, Length: 5, Wait: flockctx.WaitPoll}, {Mode: flockctx.Shared},
	} {
		t.Run(fmt.Sprintf("%v-%v-%v", o.Mechanism, o.Mode, o.Wait), func(t *testing.T) {
			path := tempPath(t)
			a := startHolder(t, path, flockctx.Options{Mechanism: o.Mechanism, Start: o.Start, Length: o.Length})
			holders(t, path)
			const n = 5
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			for range n {
				wg.Go(func() {
					l, err := flockctx.Lock(ctx, path, &o)
					if err == nil {
						l.Close()
					} else if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				})
			}
			hs := waitingHolders(t, path, n)
			for _, h := range hs[1:] {
				if h.PID != os.Getpid() || h.WaitsFor != a.cmd.Process.Pid || h.Mechanism != o.Mechanism || h.Mode != o.Mode ||
					h.Start != o.Start || h.Length != o.Length || h.Path != path || h.Command == "" {
					t.Errorf("%+v", h)
				}
			}
			all, err := flockctx.AllHolders()
			must(t, err)
			all = slices.DeleteFunc(all, func(h flockctx.Holder) bool { return h.Path != path })
			if fmt.Sprint(all) != fmt.Sprint(hs) {
				t.Errorf("AllHolders has\n%+v, Holders\n%+v", all, hs)
			}
			cancel()
			wg.Wait()
			if hs := holders(t, path); len(hs) != 1 || hs[0].PID != a.cmd.Process.Pid {
				t.Errorf("after their end: %+v", hs)
			}
		})
	}
}

func TestHoldersWaitersOnOneHandle(t *testing.T) {
	path := tempPath(t)
	l := mustLock(t, path, nil)
	holders(t, path)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, h := range []*flockctx.Flock{l, flockctx.New(path, nil)} {
		wg.Go(func() { h.Lock(ctx) })
	}
	for _, h := range waitingHolders(t, path, 2) {
		if h.PID != os.Getpid() || h.Waiting && h.WaitsFor != os.Getpid() {
			t.Errorf("%+v", h)
		}
	}
	cancel()
	wg.Wait()
}
