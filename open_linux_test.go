package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/flockctx/flockctx"
)

// A file that several users share: Perm exactly, whatever the umask, and nobody sees it
// without.
func TestExactPermIsSharedByUsers(t *testing.T) {
	dir := publicDir(t, 0o777)
	run(t, "exact-perm", []string{filepath.Join(dir, "file")})
	path := filepath.Join(dir, "file")
	fi, err := os.Stat(path)
	must(t, err)
	if fi.Mode().Perm() != 0o666 {
		t.Errorf("the file has %v", fi.Mode())
	}
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) != 1 {
		t.Errorf("in the directory: %v", left)
	}
	runAsNobody(t, "write", path)
}

var _ = registerCommand("write", func(args []string) error {
	return flockctx.Do(context.Background(), args[0], nil, func(l *flockctx.Flock) error {
		_, err := l.File().WriteString("x")
		return err
	})
})

var _ = registerCommand("exact-perm", func(args []string) error {
	syscall.Umask(0o077)
	path := args[0]
	for _, o := range []flockctx.Options{
		{},
		{Flag: os.O_RDWR | os.O_CREATE},
		{Flag: os.O_WRONLY | os.O_CREATE | os.O_APPEND},
		{Flag: os.O_RDWR | os.O_CREATE | os.O_EXCL},
	} {
		o.ExactPerm, o.Perm = true, 0o666
		os.Remove(path)
		// Somebody looks all the time.
		var wg sync.WaitGroup
		stop := make(chan struct{})
		var seen error
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if fi, err := os.Stat(path); err == nil && fi.Mode().Perm() != 0o666 {
					seen = fmt.Errorf("somebody saw the file with %v", fi.Mode())
				}
			}
		})
		l, err := flockctx.TryLock(path, &o)
		close(stop)
		wg.Wait()
		if err != nil || seen != nil {
			return errors.Join(err, seen)
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	// One that exists keeps what it has, and O_EXCL refuses it.
	o := flockctx.Options{ExactPerm: true, Perm: 0o600}
	if _, err := flockctx.TryLock(path, &o); err != nil {
		return err
	}
	o.Flag = os.O_RDWR | os.O_CREATE | os.O_EXCL
	if _, err := flockctx.TryLock(path, &o); !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("O_EXCL of a file that exists: %v", err)
	}
	return nil
})

func TestReadOnlyCreatesAndWritesNothing(t *testing.T) {
	path := tempPath(t)
	_, err := flockctx.TryLock(path, &flockctx.Options{ReadOnly: true})
	wantErr(t, err, fs.ErrNotExist)
	if _, err := os.Stat(path); err == nil {
		t.Fatal("the file was created")
	}
	must(t, os.WriteFile(path, []byte("x"), 0o600))
	l := mustLock(t, path, &flockctx.Options{ReadOnly: true})
	wantLocked(t, path, flockctx.Options{})
	if _, err := l.File().WriteString("y"); err == nil {
		t.Error("the file can be written")
	}
	_, err = flockctx.TryLock(path, &flockctx.Options{ReadOnly: true, Flag: os.O_RDWR})
	wantErr(t, err, syscall.EINVAL)
	_, err = flockctx.TryLock(path, &flockctx.Options{ReadOnly: true, Mechanism: flockctx.OFD})
	wantErr(t, err, syscall.EBADF) // an exclusive one needs it open for writing
}

// A Root is not left, and no file outside of it is touched, whatever names are swapped
// while Lock runs.
func TestRootIsNotLeft(t *testing.T) {
	base := t.TempDir()
	dir, outside := filepath.Join(base, "root"), filepath.Join(base, "outside")
	must(t, os.MkdirAll(filepath.Join(dir, "real"), 0o700))
	must(t, os.Mkdir(outside, 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "real", "file"), []byte("inside"), 0o600))
	must(t, os.WriteFile(filepath.Join(outside, "file"), []byte("outside"), 0o600))
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()

	for _, path := range []string{"../outside/file", filepath.Join(outside, "file"), "real/../../outside/file"} {
		_, err := flockctx.TryLock(path, &flockctx.Options{Root: root})
		if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != path {
			t.Errorf("%s: %v", path, err)
		}
	}
	l := mustLock(t, "real/file", &flockctx.Options{Root: root})
	wantLocked(t, filepath.Join(dir, "real", "file"), flockctx.Options{})
	must(t, l.Close())
	must(t, mustLock(t, "new", &flockctx.Options{Root: root, ExactPerm: true, Perm: 0o640}).Close())
	if fi, err := os.Stat(filepath.Join(dir, "new")); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", fi, err)
	}
	// What is renamed or removed under a waiter is noticed in the root as well.
	old := mustLock(t, "new2", &flockctx.Options{Root: root, Remove: true})
	waiting := async(func() error {
		return flockctx.Do(t.Context(), "new2", &flockctx.Options{Root: root}, func(l *flockctx.Flock) error {
			wantLocked(t, filepath.Join(dir, "new2"), flockctx.Options{})
			return nil
		})
	})
	eventually(t, "it waits", func() bool { return flockctx.Waiters(filepath.Join(dir, "new2"), flockctx.BSD) == 1 })
	must(t, old.Close())
	must(t, soon(t, waiting, "Lock in the root"))

	swaps := 20_000
	switch {
	case os.Getenv("FLOCKCTX_LONG") != "":
		swaps = 1_000_000
	case testing.Short():
		swaps = 2_000
	}
	// "link" is a directory with a file to empty, inside or outside.
	link := filepath.Join(dir, "link")
	must(t, os.Symlink("real", link))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				l, err := flockctx.Lock(context.Background(), "link/file", &flockctx.Options{Root: root, Flag: os.O_RDWR | os.O_CREATE | os.O_TRUNC})
				if err == nil {
					l.File().WriteString("inside")
					l.Close()
				}
			}
		})
	}
	for i := range swaps {
		target := []string{"real", outside, "../outside"}[i%3]
		next := filepath.Join(dir, fmt.Sprint("next", i%2))
		must(t, os.Symlink(target, next))
		must(t, os.Rename(next, link))
	}
	close(stop)
	wg.Wait()
	if b, err := os.ReadFile(filepath.Join(outside, "file")); err != nil || string(b) != "outside" {
		t.Errorf("the file outside is %q, %v", b, err)
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Errorf("outside there is %v", left)
	}
}

func TestTryConvert(t *testing.T) {
	for _, mechanism := range mechanisms() {
		path := tempPath(t)
		o := flockctx.Options{Mechanism: mechanism}
		l := mustLock(t, path, &o)
		must(t, l.TryConvert(flockctx.Shared))
		must(t, l.TryConvert(flockctx.Shared))
		shared := o
		shared.Mode = flockctx.Shared
		other := startHolder(t, path, shared)
		err := l.TryConvert(flockctx.Exclusive)
		busy, ok := err.(*flockctx.BusyError)
		if !ok || !errors.Is(err, flockctx.ErrLocked) || busy.Mode != flockctx.Exclusive || busy.Waited != 0 {
			t.Fatalf("%v: beside a holder in another process: %v", mechanism, err)
		}
		if !l.Locked() || l.Mode() != flockctx.Shared {
			t.Error("the lock is not as before")
		}
		wantLocked(t, path, o)
		other.must("unlock")
		reader := mustLock(t, path, &shared)
		wantErr(t, l.TryConvert(flockctx.Exclusive), flockctx.ErrLocked)
		must(t, reader.Close())
		must(t, l.TryConvert(flockctx.Exclusive))
		if l.Mode() != flockctx.Exclusive {
			t.Error("not converted")
		}
		must(t, l.Unlock())
		wantErr(t, l.TryConvert(flockctx.Shared), flockctx.ErrNotLocked)
	}
}

// A mount that does not answer takes a thread for each open: past so many Lock waits, as
// long as its context lets it, and TryLock says so.
func TestOpensThatAreStuckHaveABound(t *testing.T) {
	done := sync.OnceFunc(flockctx.PretendOpening(true))
	defer done()
	path := tempPath(t)
	_, err := flockctx.TryLock(path, nil)
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Op != "open" || pathErr.Path != path {
		t.Errorf("TryLock: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*flockctx.OpenPatience)
	defer cancel()
	_, err = flockctx.Lock(ctx, path, nil)
	wantErr(t, err, context.DeadlineExceeded)
	if _, err := os.Stat(path); err == nil {
		t.Error("the file was opened")
	}
	waiting := async(func() error { return second(flockctx.Lock(t.Context(), path, nil)) })
	done()
	must(t, soon(t, waiting, "Lock once the mount answers"))
	flockctx.CloseHolders()
}
