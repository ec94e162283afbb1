package locker_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
)

func TestDirKeepsNamesInside(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "a", "locks")
	l := locker.Dir(dir, nil)
	names := []string{"plain", "upper", "Upper", "a/b", "a%2fb", "..", ".", "../../out", "/etc/passwd", "con", "x.", ".x", "a\x00b", strings.Repeat("long/", 200)}
	for _, name := range names {
		h, err := l.Lock(t.Context(), name, locker.Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Unlock(t.Context())
	}
	seen := map[string]bool{}
	filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			seen[strings.ToLower(d.Name())] = true // as a file system that ignores case
			if filepath.Dir(path) != dir || len(d.Name()) > 255 {
				t.Errorf("%q", path)
			}
		}
		return nil
	})
	if len(seen) != len(names) {
		t.Errorf("%d files for %d names", len(seen), len(names))
	}
	if _, err := os.Stat(filepath.Join(dir, "plain")); err != nil {
		t.Error(err)
	}
}

func TestDirPassesOptions(t *testing.T) {
	dir := t.TempDir()
	l := locker.Dir(dir, &flockctx.Options{Mode: flockctx.Shared, Remove: true, Perm: 0o640})
	h, err := l.Lock(t.Context(), "name", locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.TryLock(t.Context(), "name", locker.Shared); !errors.Is(err, flockctx.ErrLocked) {
		t.Errorf("the mode of the options counts: %v", err)
	}
	if err := h.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "name")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove: %v", err)
	}
	// The file of Lock by path is the same.
	h, err = l.Lock(t.Context(), "name", locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flockctx.TryLock(filepath.Join(dir, "name"), nil); !errors.Is(err, flockctx.ErrLocked) {
		t.Error(err)
	}
	h.Unlock(t.Context())
}

func TestDirErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := locker.Dir(file, nil).Lock(t.Context(), "name", locker.Exclusive)
	if pe, ok := errors.AsType[*fs.PathError](err); !ok || !strings.HasPrefix(pe.Path, file) {
		t.Errorf("a file for a folder: %v", err)
	}
	if runtime.GOOS == "linux" { // where nobody can make a folder in /proc
		_, err = locker.Dir("/proc/none", nil).Lock(t.Context(), "name", locker.Exclusive)
		if err == nil || !strings.Contains(err.Error(), `lock "name"`) {
			t.Errorf("a folder that cannot be made: %v", err)
		}
	}
	l := locker.Dir(t.TempDir(), nil)
	if _, err := l.Lock(t.Context(), "", locker.Exclusive); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	if _, err := l.Lock(t.Context(), strings.Repeat("x", locker.MaxName+1), locker.Exclusive); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Error(err)
	}
}

// lossy is a Locker whose lock is lost on demand.
type lossy struct {
	locker.Locker
	held *lossyHeld
}

type lossyHeld struct {
	locker.Held
	ctx  context.Context
	lose context.CancelCauseFunc
}

func (l *lossy) Lock(ctx context.Context, name string, m locker.Mode) (locker.Held, error) {
	h, err := l.Locker.Lock(ctx, name, m)
	if err != nil {
		return nil, err
	}
	l.held = &lossyHeld{Held: h}
	l.held.ctx, l.held.lose = context.WithCancelCause(h.Context())
	return l.held, nil
}

func (h *lossyHeld) Context() context.Context { return h.ctx }
func (h *lossyHeld) Unlock(ctx context.Context) error {
	if cause := context.Cause(h.ctx); cause != nil {
		h.Held.Unlock(ctx)
		return cause
	}
	return h.Held.Unlock(ctx)
}

func TestDoReportsALoss(t *testing.T) {
	l := &lossy{Locker: locker.Dir(t.TempDir(), nil)}
	errFn := errors.New("fn's")
	for _, want := range []error{nil, errFn} {
		err := locker.Do(t.Context(), l, "name", locker.Exclusive, func(ctx context.Context) error {
			child, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			l.held.lose(locker.ErrLost)
			// Err knows at once, before a goroutine has told Done.
			if ctx.Err() == nil || context.Cause(ctx) != locker.ErrLost {
				t.Errorf("%v, %v", ctx.Err(), context.Cause(ctx))
			}
			<-child.Done()
			if context.Cause(child) != locker.ErrLost {
				t.Error(context.Cause(child))
			}
			return want
		})
		if !errors.Is(err, locker.ErrLost) || want != nil && !errors.Is(err, want) {
			t.Errorf("Do of a fn that returns %v: %v", want, err)
		}
	}
}
