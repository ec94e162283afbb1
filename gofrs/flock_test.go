package flock_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/flockctx/flockctx/gofrs"
)

func TestLockOfAHeldLockIsNil(t *testing.T) {
	f := flock.New(file(t))
	for range 2 {
		must(t, f.Lock())
		took(t, true)(f.TryLock())
		took(t, true)(f.TryLockContext(t.Context(), time.Hour))
	}
	states(t, f, true, false)
	must(t, f.Unlock())
	must(t, f.Unlock())
	must(t, f.Close())
	states(t, f, false, false)
	for range 2 {
		must(t, f.RLock())
		took(t, true)(f.TryRLock())
		took(t, true)(f.TryRLockContext(t.Context(), time.Hour))
	}
	states(t, f, false, true)
	must(t, f.Close())
	must(t, f.Lock())
	must(t, f.Close())
}

func TestNames(t *testing.T) {
	path := file(t)
	for _, f := range []*flock.Flock{flock.New(path), flock.NewFlock(path)} {
		if f.Path() != path || f.Name() != path || f.String() != path || fmt.Sprint(f) != path {
			t.Errorf("%q, %q, %q, %v; want %q", f.Path(), f.Name(), f.String(), f, path)
		}
	}
}

// A zero Flock is one for the path "".
func TestZeroValue(t *testing.T) {
	var f flock.Flock
	if err := f.Lock(); err == nil {
		t.Error("Lock of no path succeeds")
	}
	if ok, err := f.TryRLock(); ok || err == nil {
		t.Errorf("TryRLock of no path: %v, %v", ok, err)
	}
	must(t, f.Unlock())
	states(t, &f, false, false)
}

func TestContextErrorComesBackItself(t *testing.T) {
	path := file(t)
	holder, f := flock.New(path), flock.New(path)
	must(t, holder.Lock())
	defer holder.Close()
	cause := errors.New("cause")
	canceled, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	late, cancelLate := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancelLate()
	for _, test := range []struct {
		f    *flock.Flock
		ctx  context.Context
		want error
	}{
		{f, canceled, context.Canceled},
		{holder, canceled, context.Canceled}, // held, and ended all the same
		{f, late, context.DeadlineExceeded},
	} {
		if ok, err := test.f.TryLockContext(test.ctx, time.Hour); ok || err != test.want {
			t.Errorf("TryLockContext: %v, %v; want %v", ok, err, test.want)
		}
	}
	if ok, err := f.TryRLockContext(late, time.Hour); ok || err != context.DeadlineExceeded {
		t.Errorf("TryRLockContext: %v, %v", ok, err)
	}
}

// What the caller says of the interval does not matter: the lock comes when it is free.
func TestTryLockContextDoesNotPoll(t *testing.T) {
	path := file(t)
	release := hold(t, path, false)
	f := flock.New(path)
	time.AfterFunc(10*time.Millisecond, release)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	took(t, true)(f.TryLockContext(ctx, time.Hour))
	must(t, f.Close())
}

func TestErrorsAreThoseOfTheFile(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "no", "lock")
	f := flock.New(missing)
	ok, err := f.TryLock()
	_, cerr := f.TryRLockContext(t.Context(), time.Second)
	for _, err := range []error{f.Lock(), f.RLock(), err, cerr} {
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skipf("SKIP: %v", err)
		}
		if pe, is := err.(*fs.PathError); !is || pe.Path != missing || !os.IsNotExist(err) || ok {
			t.Errorf("%T %v", err, err)
		}
	}
	if _, err := f.Stat(); !os.IsNotExist(err) {
		t.Error(err)
	}
	states(t, f, false, false)
}

func TestOptions(t *testing.T) {
	path := file(t)
	other := filepath.Join(t.TempDir(), "other")
	f := flock.New(other, flock.SetFlag(os.O_RDONLY))
	if err := f.Lock(); !os.IsNotExist(err) {
		t.Fatalf("O_RDONLY alone does not create: %v", err)
	}
	f = flock.New(other, flock.SetPermissions(0o640|fs.ModeDir), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	must(t, f.Lock())
	fi, err := f.Stat()
	must(t, err)
	if runtime.GOOS != "windows" && fi.Mode()&^0o040 != 0o600 {
		t.Errorf("permissions %v", fi.Mode())
	}
	must(t, f.Close())

	must(t, os.WriteFile(path, []byte("text"), 0o600))
	holder := flock.New(path)
	must(t, holder.Lock())
	f = flock.New(path, flock.SetFlag(os.O_RDWR|os.O_TRUNC))
	took(t, false)(f.TryLock())
	if b, err := os.ReadFile(path); string(b) != "text" {
		t.Errorf("emptied without the lock: %q, %v", b, err)
	}
	must(t, holder.Close())
	took(t, true)(f.TryLock())
	must(t, f.Close())
	if b, err := os.ReadFile(path); len(b) > 0 {
		t.Errorf("not emptied: %q, %v", b, err)
	}
}

// A waiter whose file is removed locks the one that the path names then.
func TestRemovedFile(t *testing.T) {
	path := file(t)
	holder, f := flock.New(path), flock.New(path)
	must(t, holder.Lock())
	got := make(chan error, 1)
	go func() { got <- f.Lock() }()
	time.Sleep(20 * time.Millisecond) // so that it has the old file open, mostly
	if err := os.Remove(path); err != nil {
		t.Skipf("SKIP: an open file cannot be removed: %v", err)
	}
	must(t, holder.Close())
	must(t, <-got)
	defer f.Close()
	mine, err := f.Stat()
	must(t, err)
	now, err := os.Stat(path)
	must(t, err)
	if !os.SameFile(mine, now) {
		t.Error("the lock is on a file that the path does not name")
	}
}

// A handle that the program forgets while it is locked stays locked.
func TestForgottenHandle(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIP: the folder of an open file cannot be removed, so the test neither")
	}
	path := file(t)
	func() { must(t, flock.New(path).Lock()) }()
	for range 3 {
		runtime.GC()
		time.Sleep(5 * time.Millisecond)
	}
	took(t, false)(flock.New(path).TryLock())
}

// Neither an unlocked handle nor a try that failed keeps a file open.
func TestDescriptors(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SKIP: counts descriptors in /proc")
	}
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(fds)
	}
	path := file(t)
	holder := flock.New(path)
	must(t, holder.Lock())
	before := count()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	var fs []*flock.Flock
	for range 20 {
		f := flock.New(path)
		fs = append(fs, f)
		took(t, false)(f.TryLock())
		f.TryRLockContext(ctx, 0)
	}
	if n := count(); n > before {
		t.Errorf("%d descriptors after failures, %d before", n, before)
	}
	must(t, holder.Close())
	for _, f := range fs {
		must(t, f.Lock())
		must(t, f.Unlock())
	}
	if n := count(); n >= before {
		t.Errorf("%d descriptors after Unlock, %d with one lock", n, before)
	}
	runtime.KeepAlive(fs)
}
