package main

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

func TestEveryEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	try := func(ctx context.Context, path string, wait time.Duration) (string, error) {
		var out strings.Builder
		err := run(ctx, &out, path, wait, 0)
		return out.String(), err
	}

	if out, err := try(t.Context(), path, time.Minute); err != nil || !strings.HasPrefix(out, "locked after ") {
		t.Errorf("free: %q, %v", out, err)
	}
	if out, err := try(t.Context(), path, 0); err != nil || !strings.HasPrefix(out, "locked after ") {
		t.Errorf("free, without waiting: %q, %v", out, err)
	}

	l, err := flockctx.TryLock(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if out, err := try(t.Context(), path, 50*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(out, "still locked after ") {
		t.Errorf("deadline: %q, %v", out, err)
	}
	if out, err := try(t.Context(), path, 0); !errors.Is(err, flockctx.ErrLocked) || !strings.HasPrefix(out, "another holder") {
		t.Errorf("without waiting: %q, %v", out, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if out, err := try(ctx, path, time.Hour); !errors.Is(err, context.Canceled) || !strings.HasPrefix(out, "interrupted after ") {
		t.Errorf("cancelled: %q, %v", out, err)
	}
	missing := filepath.Join(filepath.Dir(path), "no", "lock")
	if out, err := try(t.Context(), missing, time.Hour); !errors.Is(err, fs.ErrNotExist) || out != "cannot be locked\n" {
		t.Errorf("missing directory: %q, %v", out, err)
	}
}
