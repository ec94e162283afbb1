package flockctx_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

func TestSmoke(t *testing.T) {
	p := filepath.Join(t.TempDir(), "x")
	l, err := flockctx.Lock(context.Background(), p, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flockctx.TryLock(p, nil); !errors.Is(err, flockctx.ErrLocked) {
		t.Fatal(err)
	}
	ctx, c := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer c()
	_, err = flockctx.Lock(ctx, p, nil)
	t.Log(err)
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := l.Lock(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
