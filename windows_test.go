//go:build windows

package flockctx_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/windows"
)

// What is particular to Windows; the portable tests run there too, under wine.

func TestWindowsAKilledHolderFreesTheLock(t *testing.T) {
	path := tempPath(t)
	other := startHolder(t, path, flockctx.Options{})
	locked := async(func() error {
		l, err := flockctx.Lock(t.Context(), path, nil)
		if err == nil {
			err = l.Close()
		}
		return err
	})
	eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
	if err := other.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	must(t, soon(t, locked, "Lock after the holder was killed"))
}

func TestWindowsTheFileCanBeReadAndWrittenUnderTheLock(t *testing.T) {
	path := tempPath(t)
	l := mustLock(t, path, nil)
	if _, err := l.File().WriteString("first,"); err != nil {
		t.Fatal(err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	// The handle belongs to the runtime's completion port by now.
	if err := l.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.File().WriteString("second"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "first,second" {
		t.Errorf("through another handle: %q, %v", b, err)
	}
	if _, err := l.File().Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(l.File()); err != nil || string(b) != "first,second" {
		t.Errorf("through File: %q, %v", b, err)
	}
	if err := os.WriteFile(path, []byte("third"), 0); err != nil {
		t.Errorf("the lock is advisory: %v", err)
	}
}

func TestWindowsAppend(t *testing.T) {
	path := tempPath(t)
	o := &flockctx.Options{Flag: os.O_WRONLY | os.O_APPEND | os.O_CREATE}
	for range 2 {
		l := mustLock(t, path, o)
		if _, err := l.File().WriteString("line\n"); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "line\nline\n" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestWindowsConvert(t *testing.T) {
	path := tempPath(t)
	l := mustLock(t, path, nil)
	shared := &flockctx.Options{Mode: flockctx.Shared}
	if err := l.Convert(t.Context(), flockctx.Shared); err != nil {
		t.Fatal(err)
	}
	h := mustLock(t, path, shared)
	if _, err := flockctx.TryLock(path, nil); !errors.Is(err, flockctx.ErrLocked) {
		t.Errorf("exclusive beside two shared: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Convert(t.Context(), flockctx.Exclusive); err != nil {
		t.Fatal(err)
	}
	if _, err := flockctx.TryLock(path, shared); !errors.Is(err, flockctx.ErrLocked) {
		t.Errorf("shared beside exclusive: %v", err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	// One Unlock must have been enough, whatever was converted.
	startHolder(t, path, flockctx.Options{})
}

// A file that was removed keeps its name, on file systems without POSIX deletion and
// under wine, until the last handle is closed. Windows refuses to open it meanwhile.
func TestWindowsARemovedFileThatIsOpen(t *testing.T) {
	path := tempPath(t)
	l := mustLock(t, path, nil)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if n, err := flockctx.Lock(ctx, path, nil); err == nil {
		n.Close() // the name was free at once
	} else if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the removed file is open: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustLock(t, path, nil)
}

// Log rotation: the file is renamed under its holder, and the name is free.
func TestWindowsALockedFileCanBeRenamed(t *testing.T) {
	path := tempPath(t)
	l := mustLock(t, path, nil)
	must(t, os.Rename(path, path+".1"))
	n := mustLock(t, path, nil)
	if _, err := flockctx.TryLock(path+".1", nil); !errors.Is(err, flockctx.ErrLocked) {
		t.Errorf("the renamed file: %v", err)
	}
	must(t, l.Close())
	must(t, n.Close())
}

func TestWindowsFileOfTheCaller(t *testing.T) {
	path := tempPath(t)
	f, err := os.Create(path) // not overlapped
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := flockctx.UnlockFile(f, nil); err != nil {
		t.Errorf("UnlockFile without a lock: %v", err)
	}
	other := startHolder(t, path, flockctx.Options{})
	if _, err := flockctx.TryLockFile(f, nil); !errors.Is(err, flockctx.ErrLocked) {
		t.Fatal(err)
	}
	for _, wait := range waits { // a wait in the kernel could not be ended: it polls
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		_, err := flockctx.LockFile(ctx, f, &flockctx.Options{Wait: wait})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v: %v", wait, err)
		}
	}
	other.must("unlock")
	l, err := flockctx.LockFile(t.Context(), f, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flockctx.TryLock(path, nil); !errors.Is(err, flockctx.ErrLocked) {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("still open"); err != nil {
		t.Error(err)
	}
}

func TestWindowsWhatCannotBeLocked(t *testing.T) {
	dir := t.TempDir()
	try := func(path string, o *flockctx.Options) error {
		l, err := flockctx.TryLock(path, o)
		if err == nil {
			l.Close()
		}
		return err
	}
	if err := try(dir, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("directory: %v", err)
	}
	if err := try("NUL", nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("device: %v", err)
	}
	if err := try(filepath.Join(dir, "ofd"), &flockctx.Options{Mechanism: flockctx.OFD}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("OFD: %v", err)
	}
	if err := try(filepath.Join(dir, "no", "such", "directory"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}

	// A program that shares its file with nobody is no holder of the lock.
	path := filepath.Join(dir, "unshared")
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.CREATE_NEW, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(h)
	_, err = flockctx.Lock(t.Context(), path, nil)
	var pe *fs.PathError
	if !errors.As(err, &pe) || pe.Path != path || !errors.Is(err, windows.ERROR_SHARING_VIOLATION) {
		t.Errorf("sharing violation: %v", err)
	}
}

func TestWindowsAReadOnlyFile(t *testing.T) {
	path := tempPath(t)
	if err := os.WriteFile(path, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(path, 0o600) })
	mustLock(t, path, nil)
	if _, err := flockctx.TryLock(path, nil); !errors.Is(err, flockctx.ErrLocked) {
		t.Error(err)
	}
}

// Go's own cmd/go/internal/lockedfile, and others, lock all offsets there are.
func TestWindowsALockOfTheWholeFileIsMet(t *testing.T) {
	path := tempPath(t)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK, 0, ^uint32(0), ^uint32(0), new(windows.Overlapped))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flockctx.TryLock(path, nil); !errors.Is(err, flockctx.ErrLocked) {
		t.Error(err)
	}
}
