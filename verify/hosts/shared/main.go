// Shared is flockctx as a C library: built with -buildmode=c-shared or c-archive, for
// hosts that are not Go programs.
package main

import "C"

import (
	"context"
	"errors"
	"time"

	"github.com/flockctx/flockctx"
)

// flockctx_wait waits for a lock that somebody else holds, with a deadline. It returns
// by how many milliseconds that was missed; -1: locked; -2: such a wait is refused;
// -3: another error.
//
//export flockctx_wait
func flockctx_wait(path *C.char, wait, ms C.int) C.int {
	timeout := time.Duration(ms) * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	start := time.Now()
	l, err := flockctx.Lock(ctx, C.GoString(path), &flockctx.Options{Wait: flockctx.Wait(wait)})
	switch {
	case err == nil:
		l.Close()
		return -1
	case errors.Is(err, errors.ErrUnsupported):
		return -2
	case !errors.Is(err, context.DeadlineExceeded):
		return -3
	}
	return C.int((time.Since(start) - timeout) / time.Millisecond)
}

func main() {}
