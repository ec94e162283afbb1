package flockctx_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/flockctx/flockctx"
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
