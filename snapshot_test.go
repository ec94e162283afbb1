package flockctx_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/flockctx/flockctx"
)

// snapshotOf returns what Snapshot says of the files in dir: for each handle its file,
// mode, "held" if it holds, and how many wait.
func snapshotOf(dir string) (lines []string) {
	for _, h := range flockctx.Snapshot() {
		if filepath.Dir(h.Path) == dir {
			held := ""
			if h.Locked {
				held = "held "
			}
			lines = append(lines, fmt.Sprintf("%s %v %s%d", filepath.Base(h.Path), h.Mode, held, h.Waiting))
		}
	}
	return lines
}

func wantSnapshot(t testing.TB, dir string, want ...string) {
	t.Helper()
	if got := snapshotOf(dir); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSnapshot(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	shared := &flockctx.Options{Mode: flockctx.Shared}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	wantSnapshot(t, dir)
	idle := newHandle(t, a, nil)
	must(t, idle.Lock(ctx))
	must(t, idle.Unlock())
	wantSnapshot(t, dir) // neither holds nor waits

	holder := mustLock(t, b, nil)
	wantSnapshot(t, dir, "b exclusive held 0")
	var waits []<-chan error
	wait := func(l *flockctx.Flock) { waits = append(waits, async(func() error { return l.Lock(ctx) })) }

	reader := newHandle(t, b, shared)
	wait(reader)
	eventually(t, "the reader waits", func() bool { return flockctx.Waiters(b, flockctx.BSD) == 1 })
	writer := newHandle(t, b, nil)
	wait(writer)
	eventually(t, "the writer waits", func() bool { return flockctx.Waiters(b, flockctx.BSD) == 2 })
	wait(writer)
	eventually(t, "another one waits for the writer's handle", func() bool { return flockctx.HandleWaiters(writer) == 1 })
	wait(holder)
	eventually(t, "one waits for the holder's handle", func() bool { return flockctx.HandleWaiters(holder) == 1 })
	one, two := mustLock(t, a, shared), mustLock(t, a, shared)
	waits = append(waits, async(func() error { return one.Convert(ctx, flockctx.Exclusive) }))
	eventually(t, "the conversion waits", func() bool { return flockctx.Waiters(a, flockctx.BSD) == 1 })
	want := []string{"a shared held 0", "a shared held 1", "b exclusive held 1", "b shared 1", "b exclusive 2"}
	got := snapshotOf(dir)
	if len(got) > 1 && got[0] > got[1] { // of several that hold a file the order is open
		got[0], got[1] = got[1], got[0]
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	cancel()
	for _, w := range waits {
		wantErr(t, soon(t, w, "the end"), context.Canceled)
	}
	must(t, one.Close())
	must(t, two.Close())
	must(t, holder.Unlock())
	wantSnapshot(t, dir)
}

func TestSnapshotOfAWaitForAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	other := startHolder(t, path, flockctx.Options{})
	l := newHandle(t, path, nil)
	done := async(func() error { return l.Lock(t.Context()) })
	eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
	wantSnapshot(t, dir, "x exclusive 1")
	other.must("unlock")
	must(t, soon(t, done, "the grant"))
	wantSnapshot(t, dir, "x exclusive held 0")
	must(t, l.Unlock())
}

func TestSnapshotNamesTheFile(t *testing.T) {
	for _, m := range mechanisms() {
		path := tempPath(t)
		o := &flockctx.Options{Mechanism: m}
		if m == flockctx.OFD {
			o.Start, o.Length = 3, 7
		}
		mustLock(t, path, o)
		for _, h := range flockctx.Snapshot() {
			if h.Path != path {
				continue
			}
			if h.Mechanism != m || h.Start != o.Start || h.Length != o.Length {
				t.Errorf("%+v, locked with %+v", h, o)
			}
			hs, err := flockctx.Holders(path)
			if err != nil {
				continue // this system cannot tell
			}
			// On btrfs the devices are of two kinds.
			if len(hs) != 1 || hs[0].Inode != h.Inode || h.Device == 0 {
				t.Errorf("%+v, Holders say %+v", h, hs)
			}
		}
	}
}
