//go:build linux

package flockctx_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// flock(2) locks whatever is open, and scripts use it: of a block device, for one,
// to keep udev from probing it.
func TestLockFileOfOtherKinds(t *testing.T) {
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, f := range []*os.File{null, r} {
		l, err := flockctx.LockFile(context.Background(), f, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := flockctx.TryLockFile(f, nil); !errors.Is(err, flockctx.ErrLocked) {
			t.Errorf("%s, locked: %v; want %v", f.Name(), err, flockctx.ErrLocked)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	// By path they are refused, rather than opened.
	if _, err := flockctx.TryLock("/dev/null", nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("by path: %v; want %v", err, errors.ErrUnsupported)
	}
}

// The kernel merges overlapping ranges of one open file description, so the second
// handle would be granted what the first one holds, and release it.
func TestOverlappingRangesOfOneOpenFileAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ofd := func(start, length int64) *flockctx.Options {
		return &flockctx.Options{Mechanism: flockctx.OFD, Start: start, Length: length}
	}
	a, err := flockctx.TryLockFile(f, ofd(0, 10))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []*flockctx.Options{ofd(5, 10), ofd(9, 0), ofd(0, 0)} {
		var pe *fs.PathError
		if _, err := flockctx.TryLockFile(f, o); !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &pe) {
			t.Errorf("%d+%d beside 0+10: %v, want a PathError that matches ErrUnsupported", o.Start, o.Length, err)
		}
	}
	b, err := flockctx.TryLockFile(f, ofd(10, 0))
	if err != nil {
		t.Fatalf("a disjoint range: %v", err)
	}
	if _, err := flockctx.TryLock(path, ofd(5, 1)); !errors.Is(err, flockctx.ErrLocked) {
		t.Errorf("inside the first range: %v, want ErrLocked", err)
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
}

// Whoever looks for other handles on its open file leaves to those what they are at, such
// as waiting for another process: for the race detector.
func TestLockFileBesideOneThatWaits(t *testing.T) {
	path := tempPath(t)
	holder := startHolder(t, path, flockctx.Options{Mechanism: flockctx.OFD, Length: 10})
	for range 100 {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		g, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		waits := async(func() error {
			_, err := flockctx.LockFile(ctx, f, &flockctx.Options{Mechanism: flockctx.OFD, Length: 10})
			return err
		})
		for flockctx.WaitingOutside() == 0 {
			l, err := flockctx.TryLockFile(g, &flockctx.Options{Mechanism: flockctx.OFD, Start: 5, Length: 10})
			if err == nil {
				l.Close()
			}
		}
		cancel()
		wantErr(t, soon(t, waits, "LockFile"), context.Canceled)
		must(t, errors.Join(f.Close(), g.Close()))
	}
	holder.must("unlock")
}

// A descriptor that cannot be locked, whatever the file is, says so.
func TestLockFileOpenWithOPath(t *testing.T) {
	path := tempPath(t)
	must(t, os.WriteFile(path, nil, 0o600))
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	for _, mechanism := range mechanisms() {
		_, err := flockctx.LockFile(t.Context(), f, &flockctx.Options{Mechanism: mechanism})
		if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != path || pathErr.Op != "lock" {
			t.Errorf("%v: %#v", mechanism, err)
		}
		wantText(t, err, "O_PATH")
		wantText(t, flockctx.UnlockFile(f, &flockctx.Options{Mechanism: mechanism}), "O_PATH")
	}
}
