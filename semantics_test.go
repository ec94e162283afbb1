package flockctx_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flockctx/flockctx"
)

// What docs/semantics.md says, and no other test shows.

func TestPollingUsesTheClockOfABubble(t *testing.T) {
	path := tempPath(t)
	startAgent(t, path, flockctx.Options{}).must("lock")
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err := flockctx.Lock(ctx, path, &flockctx.Options{Wait: flockctx.WaitPoll})
		wantErr(t, err, context.DeadlineExceeded)
		if d := time.Since(begin); d < time.Hour || d > time.Hour+time.Second {
			t.Errorf("waited %v", d)
		}
	})
}

func TestGoroutinesOfABubbleTakeTurns(t *testing.T) {
	path := tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		l, err := flockctx.Lock(t.Context(), path, nil)
		must(t, err)
		go func() {
			time.Sleep(time.Hour)
			must(t, l.Close())
		}()
		begin := time.Now()
		l, err = flockctx.Lock(t.Context(), path, nil)
		must(t, err)
		if d := time.Since(begin); d < time.Hour {
			t.Errorf("locked after %v beside the holder", d)
		}
		must(t, l.Close())
	})
}
