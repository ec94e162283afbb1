package semaphore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/semaphore"
)

// Of all processes that run this, four at a time convert, each on a GPU of its own.
func ExampleAcquire() {
	path := filepath.Join(os.TempDir(), "gpus.slots")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p, err := semaphore.Acquire(ctx, path, 4, nil)
	if err != nil {
		fmt.Println("no GPU within a minute:", err)
		return
	}
	defer p.Release()
	fmt.Println("got one of four:", p.Slot() >= 0 && p.Slot() < 4)
	// Output: got one of four: true
}

func ExampleTryAcquire() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "jobs.slots")
	for i := range 3 {
		p, err := semaphore.TryAcquire(path, 2, nil)
		if errors.Is(err, flockctx.ErrLocked) {
			fmt.Println(i, "all slots are taken")
			continue
		}
		if err != nil {
			panic(err)
		}
		defer p.Release()
		fmt.Println(i, "is in")
	}
	// Output:
	// 0 is in
	// 1 is in
	// 2 all slots are taken
}
