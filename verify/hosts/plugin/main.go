// Plugin is flockctx in a Go plugin.
package main

import (
	"context"
	"time"

	"github.com/flockctx/flockctx"
)

// Wait waits for a lock, with a deadline.
func Wait(path string, wait flockctx.Wait, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	l, err := flockctx.Lock(ctx, path, &flockctx.Options{Wait: wait})
	if err == nil {
		l.Close()
	}
	return err
}

func main() {}
