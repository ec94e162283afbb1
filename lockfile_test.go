package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"testing"

	"github.com/flockctx/flockctx"
)

func TestLockFile(t *testing.T) {
	queues := flockctx.Queues()
	path := tempPath(t)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	l, err := flockctx.LockFile(t.Context(), f, nil)
	must(t, err)
	if l.File() != f || l.Name() != path {
		t.Errorf("file %v, name %q", l.File(), l.Name())
	}
	wantLocked(t, path, flockctx.Options{})
	_, err = flockctx.TryLockFile(f, nil) // handles on one open file exclude each other, too
	wantErr(t, err, flockctx.ErrLocked)
	must(t, l.Unlock())
	wantFree(t, path, flockctx.Options{})
	must(t, l.Lock(t.Context()))
	must(t, l.Close())
	wantFree(t, path, flockctx.Options{})
	if _, err := f.Stat(); err != nil {
		t.Errorf("Close closed the caller's file: %v", err)
	}

	l, err = flockctx.TryLockFile(f, &flockctx.Options{Remove: true})
	must(t, err)
	if runtime.GOOS != "windows" { // which does not remove a file that os.OpenFile has open
		must(t, os.Remove(path)) // its name does not matter
	}
	must(t, l.Convert(t.Context(), flockctx.Shared))
	must(t, l.Close())

	must(t, f.Close())
	_, err = flockctx.LockFile(t.Context(), f, nil)
	wantErr(t, err, fs.ErrClosed)
	_, err = flockctx.LockFile(t.Context(), nil, nil)
	wantErr(t, err, fs.ErrInvalid)
	if n := flockctx.Queues(); n > queues {
		t.Errorf("%d queues before, %d after", queues, n)
	}
}

// The kernel has one lock for an open file: a second handle that would share it, and
// release it for both, is refused, also through a duplicate of the descriptor.
func TestLockFileSharedTwice(t *testing.T) {
	for _, mechanism := range mechanisms() {
		path := tempPath(t)
		f, err := os.Create(path)
		must(t, err)
		defer f.Close()
		o := &flockctx.Options{Mode: flockctx.Shared, Mechanism: mechanism}
		a, err := flockctx.LockFile(t.Context(), f, o)
		must(t, err)
		_, err = flockctx.TryLockFile(f, o)
		wantErr(t, err, errors.ErrUnsupported)
		_, err = flockctx.LockFile(t.Context(), f, o)
		wantErr(t, err, errors.ErrUnsupported)
		// Another open file is another lock.
		g, err := os.Open(path)
		must(t, err)
		defer g.Close()
		b, err := flockctx.LockFile(t.Context(), g, o)
		must(t, err)
		other := startAgent(t, path, flockctx.Options{Mechanism: mechanism})
		must(t, a.Close())
		if s := other.do("trylock"); s != "locked" {
			t.Errorf("while one of two handles holds the lock, another process: %s", s)
		}
		must(t, b.Close())
		other.must("trylock")
	}
}

func TestClosingTheCallersFileReleasesItsLock(t *testing.T) {
	for _, mode := range []flockctx.Mode{flockctx.Exclusive, flockctx.Shared} {
		t.Run(mode.String(), func(t *testing.T) {
			path := tempPath(t)
			o := &flockctx.Options{Mode: mode}
			other := startAgent(t, path, flockctx.Options{})
			f, err := os.Create(path)
			must(t, err)
			l, err := flockctx.LockFile(t.Context(), f, o)
			must(t, err)
			must(t, f.Close())
			wantErr(t, l.Unlock(), fs.ErrClosed)
			wantErr(t, l.Unlock(), flockctx.ErrNotLocked)
			wantErr(t, l.Lock(t.Context()), fs.ErrClosed)

			// The same number, another open file: it has to be locked for real.
			f, err = os.Open(path)
			must(t, err)
			defer f.Close()
			again, err := flockctx.LockFile(t.Context(), f, o)
			must(t, err)
			if s := other.do("trylock"); s != "locked" {
				t.Errorf("another process: %s", s)
			}
			must(t, again.Close())
			other.must("trylock")
		})
	}
}

// The same while LockFile waits: what it is granted then goes with the file, or stays
// with a child for ever, and is no lock.
func TestClosingTheCallersFileDuringTheWait(t *testing.T) {
	for _, mechanism := range mechanisms() {
		for _, mode := range []flockctx.Mode{flockctx.Exclusive, flockctx.Shared} {
			for _, wait := range waits {
				t.Run(fmt.Sprintf("%v,%v,%v", mechanism, mode, wait), func(t *testing.T) {
					path := tempPath(t)
					o := flockctx.Options{Mechanism: mechanism, Mode: mode, Wait: wait}
					holder := startHolder(t, path, flockctx.Options{Mechanism: mechanism})
					descriptors, queues := countDescriptors(), flockctx.Queues()
					f, err := os.OpenFile(path, os.O_RDWR, 0)
					must(t, err)
					done := async(func() error {
						l, err := flockctx.LockFile(t.Context(), f, &o)
						if err == nil {
							l.Close()
						}
						return err
					})
					eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
					must(t, soon(t, async(f.Close), "Close of the file"))
					holder.must("unlock")
					err = soon(t, done, "LockFile")
					wantErr(t, err, fs.ErrClosed)
					if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != path {
						t.Errorf("%#v, want an *fs.PathError with the path", err)
					}
					wantFree(t, path, flockctx.Options{Mechanism: mechanism})
					if n := countDescriptors(); n > descriptors {
						t.Errorf("%d descriptors before, %d after", descriptors, n)
					}
					if n := flockctx.Queues(); n > queues {
						t.Errorf("%d queues before, %d after", queues, n)
					}
				})
			}
		}
	}
}

func TestClosingFileOfAHandle(t *testing.T) {
	path := tempPath(t)
	l := mustLock(t, path, nil)
	must(t, l.File().Close())
	wantErr(t, l.Unlock(), fs.ErrClosed)
	if l.Locked() {
		t.Error("still locked")
	}
	must(t, l.Lock(t.Context())) // opens it again
	wantLocked(t, path, flockctx.Options{})
	must(t, l.Unlock())
	must(t, l.Lock(t.Context()))
	must(t, l.File().Close())
	l.Close()
	wantFree(t, path, flockctx.Options{})
}

func TestFile(t *testing.T) {
	path := tempPath(t)
	l := newHandle(t, path, nil)
	if l.File() != nil {
		t.Error("a file before the first Lock")
	}
	must(t, l.Lock(t.Context()))
	f := l.File()
	if f == nil || f != l.File() || f.Name() != path {
		t.Fatalf("File is %v, then %v", f, l.File())
	}
	_, err := f.WriteAt([]byte("x"), 0)
	must(t, err)
	must(t, l.Unlock())
	must(t, l.Lock(t.Context()))
	if l.File() != f {
		t.Error("another File after Unlock and Lock")
	}
	must(t, l.Close())
	if _, err := f.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// The same where both had to wait for another process: one has the lock, and keeps it.
func TestLockFileSharedAfterWaiting(t *testing.T) {
	for _, wait := range waits {
		path := tempPath(t)
		holder := startHolder(t, path, flockctx.Options{})
		f, err := os.Open(path)
		must(t, err)
		defer f.Close()
		o := &flockctx.Options{Mode: flockctx.Shared, Wait: wait}
		lock := func() error { _, err := flockctx.LockFile(t.Context(), f, o); return err }
		first := async(lock)
		eventually(t, "one waits for the other process", func() bool { return flockctx.WaitingOutside() == 1 })
		second := async(lock)
		eventually(t, "the other one waits behind it", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
		holder.must("unlock")
		must(t, soon(t, first, "LockFile"))
		wantErr(t, soon(t, second, "LockFile"), errors.ErrUnsupported)
		if s := holder.do("trylock"); s != "locked" {
			t.Errorf("while one of the two holds the lock, another process: %s", s)
		}
		flockctx.CloseHolders()
		holder.must("trylock")
	}
}

// The same where one of the two had been inside and went out again, behind a reader that
// waits for another process: when both are let in at once, one is refused.
func TestLockFileSharedAfterRetreat(t *testing.T) {
	for range 20 {
		path := tempPath(t)
		holder := mustLock(t, path, nil)
		f, err := os.Open(path)
		must(t, err)
		// Readers stop where they have found the lock taken, before they wait.
		lock := func(waiting chan struct{}, goOn chan struct{}) *flockctx.Options {
			return &flockctx.Options{Mode: flockctx.Shared, Wait: flockctx.WaitPoll, Tracer: &flockctx.Tracer{
				Waiting: func(context.Context, flockctx.Event) context.Context {
					waiting <- struct{}{}
					<-goOn
					return nil
				},
			}}
		}
		must(t, holder.Unlock())
		other := startHolder(t, path, flockctx.Options{})
		waiting, first, second := make(chan struct{}), make(chan struct{}), make(chan struct{})
		outsider := async(func() error {
			return flockctx.Do(t.Context(), path, lock(waiting, first), func(*flockctx.Flock) error { return nil })
		})
		<-waiting
		var got [2]*flockctx.Flock
		shared := func(i int, o *flockctx.Options) <-chan error {
			return async(func() (err error) { got[i], err = flockctx.LockFile(t.Context(), f, o); return err })
		}
		retreats := shared(0, lock(waiting, second))
		<-waiting
		close(first)
		eventually(t, "one waits for the other process", func() bool { return flockctx.WaitingOutside() == 1 })
		close(second)
		eventually(t, "one is out again", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
		late := shared(1, &flockctx.Options{Mode: flockctx.Shared})
		eventually(t, "another one waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 2 })
		other.must("close")
		must(t, soon(t, outsider, "Lock"))
		errs := []error{soon(t, retreats, "LockFile"), soon(t, late, "LockFile")}
		if errs[0] == nil && errs[1] == nil {
			t.Error("two handles hold one open file shared")
		}
		for _, l := range got {
			if l != nil {
				must(t, l.Close())
			}
		}
		must(t, f.Close())
	}
}

// A Root among the Options has no part in it, not even in where the holders are looked for.
func TestLockFileHasNoRoot(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("holders are told on Linux")
	}
	path := tempPath(t)
	root, err := os.OpenRoot(t.TempDir())
	must(t, err)
	defer root.Close()
	mustLock(t, path, nil)
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	_, err = flockctx.TryLockFile(f, &flockctx.Options{Root: root})
	var busy *flockctx.BusyError
	if !errors.As(err, &busy) {
		t.Fatal(err)
	}
	hs, err := busy.Holders()
	must(t, err)
	if len(hs) != 1 || hs[0].PID != os.Getpid() {
		t.Errorf("%+v, want this process", hs)
	}
}
