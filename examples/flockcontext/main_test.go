package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/flockctx/flockctx"
)

func Example() {
	dir, err := os.MkdirTemp("", "flockcontext-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	os.Args = []string{"flockcontext", filepath.Join(dir, "my.lock")}
	main()
	// Output:
	// exclusive lock acquired
	// exclusive lock acquired within a second
	// exclusive lock acquired without waiting
	// shared lock acquired, file has "Locked\n"
	// lock acquired
	// lock released
	// lock acquired again
	// open file locked
}

// Another holder keeps all of them from the lock, and from its file's content.
func TestBesideAnotherHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "my.lock")
	l, err := flockctx.TryLock(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := l.File().WriteString("mine"); err != nil {
		t.Fatal(err)
	}

	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := timeout(t.Context(), path, io.Discard); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timeout: %v", err)
	}
	if err := nonBlocking(t.Context(), path, io.Discard); err != nil {
		t.Errorf("nonBlocking: %v", err)
	}
	for name, usage := range map[string]func(context.Context, string, io.Writer) error{
		"exclusive": exclusive, "shared": shared, "releaseAndAcquire": releaseAndAcquire,
	} {
		if err := usage(done, path, io.Discard); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("the holder's file has %q, %v", b, err)
	}
}
