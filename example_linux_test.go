package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/flockctx/flockctx"
)

func ExampleHolders() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "job.lock")

	l, err := flockctx.Lock(context.Background(), path, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	holders, err := flockctx.Holders(path)
	if errors.Is(err, errors.ErrUnsupported) { // no /proc, or another system than Linux
		holders = []flockctx.Holder{{PID: os.Getpid()}}
	} else if err != nil {
		log.Fatal(err)
	}
	for _, h := range holders {
		fmt.Println(h.Mode, h.PID == os.Getpid(), h.Waiting) // and h.Command, the command line
	}
	// Output: exclusive true false
}

// Byte ranges of one file are locks of their own, here one for each record of 100 bytes.
func ExampleMechanism() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "accounts")

	record := func(n int64) *flockctx.Options {
		return &flockctx.Options{Mechanism: flockctx.OFD, Start: 100 * n, Length: 100}
	}
	first, err := flockctx.TryLock(path, record(0))
	if err != nil {
		log.Fatal(err)
	}
	defer first.Close()

	second, err := flockctx.TryLock(path, record(1))
	if err != nil {
		log.Fatal(err)
	}
	defer second.Close()
	fmt.Println("both records are locked")

	_, err = flockctx.TryLock(path, record(0))
	fmt.Println("the first again:", errors.Is(err, flockctx.ErrLocked))
	// Output:
	// both records are locked
	// the first again: true
}
