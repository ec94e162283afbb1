//go:build unix

package flockctx_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

// Close of a handle that has no file open must close nothing: once it closed
// descriptor 0, whatever that was.
func TestCloseWithoutFileClosesNothing(t *testing.T) {
	open := func() bool { _, err := os.Stdin.Stat(); return err == nil }
	if !open() {
		t.Skip("SKIP: this test was started without standard input")
	}
	path := filepath.Join(t.TempDir(), "lock")
	if err := flockctx.New(path, nil).Close(); err != nil {
		t.Errorf("close of a handle that never locked: %v", err)
	}
	if !open() {
		t.Fatal("close of a handle that never locked closed standard input")
	}

	holder, err := flockctx.Lock(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	loser := flockctx.New(path, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := loser.Lock(ctx); err == nil {
		t.Fatal("locked beside another holder")
	}
	if err := loser.Close(); err != nil {
		t.Errorf("close of a handle whose lock failed: %v", err)
	}
	if !open() {
		t.Fatal("close of a handle whose lock failed closed standard input")
	}
}
