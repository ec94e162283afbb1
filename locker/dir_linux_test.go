package locker_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
)

// readOnly keeps this goroutine from writing in dir, also where it is root's, until the
// returned function is called.
func readOnly(t *testing.T, dir string) (undo func()) {
	t.Helper()
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	root := os.Geteuid() == 0
	if root {
		// Of this thread only, and with it go the capabilities over files.
		runtime.LockOSThread()
		unix.Setfsuid(65534)
	}
	return func() {
		if root {
			unix.Setfsuid(0)
			runtime.UnlockOSThread()
		}
		os.Chmod(dir, 0o755)
	}
}

// TestDirCannotRemove: a file that cannot be removed must not stay locked. Do has
// nobody who would call Unlock again.
func TestDirCannotRemove(t *testing.T) {
	dir := t.TempDir()
	l := locker.Dir(dir, &flockctx.Options{Remove: true})
	check := func(what string, err error) {
		t.Helper()
		if pe, ok := errors.AsType[*fs.PathError](err); !ok || pe.Op != "remove" || !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v", what, err)
		}
		// Without Remove, so that the file is there for the next one.
		h, err := locker.Dir(dir, nil).TryLock(t.Context(), "name", locker.Exclusive)
		if err != nil {
			t.Fatalf("after %s: %v", what, err)
		}
		h.Unlock(t.Context())
	}
	var undo func()
	err := locker.Do(t.Context(), l, "name", locker.Exclusive, func(context.Context) error {
		undo = readOnly(t, dir)
		return nil
	})
	undo()
	check("Do", err)

	h, err := l.Lock(t.Context(), "name", locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	undo = readOnly(t, dir)
	err = h.Unlock(t.Context())
	undo()
	check("Unlock", err)
	if again := h.Unlock(t.Context()); again != err {
		t.Errorf("repeated: %v", again)
	}
	if _, err := os.Stat(filepath.Join(dir, "name")); err != nil {
		t.Error(err)
	}
}

func TestDirHolders(t *testing.T) {
	l := locker.Dir(filepath.Join(t.TempDir(), "locks"), nil)
	holders := func(name string) []locker.Holder {
		t.Helper()
		all, err := l.(locker.Inspector).Holders(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if all := holders("a/b"); len(all) > 0 {
		t.Errorf("of a name that was never locked: %+v", all)
	}
	h, err := l.Lock(t.Context(), "a/b", locker.Shared)
	if err != nil {
		t.Fatal(err)
	}
	host, _ := os.Hostname()
	all := holders("a/b")
	if len(all) != 1 || all[0].PID != os.Getpid() || all[0].Mode != locker.Shared || all[0].Host != host || all[0].Waiting || all[0].Note == "" {
		t.Errorf("of a held lock: %+v", all)
	}
	h.Unlock(t.Context())
	if all := holders("a/b"); len(all) > 0 {
		t.Errorf("of a released lock: %+v", all)
	}
	if _, err := l.(locker.Inspector).Holders(t.Context(), ""); err == nil {
		t.Error("of an empty name")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.(locker.Inspector).Holders(ctx, "a/b"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
