package flockctx_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/flockctx/flockctx"
)

// A relative path means the working directory in which the handle was made, whatever
// os.Chdir does later.

// elsewhere makes a working directory, and returns it and how to leave it for another one.
func elsewhere(t *testing.T) (dir string, leave func()) {
	t.Helper()
	dir, other := t.TempDir(), t.TempDir()
	t.Chdir(dir)
	return dir, func() { must(t, os.Chdir(other)) }
}

func TestChdir(t *testing.T) {
	for _, name := range []string{"file", "./file", "sub/../file"} {
		for _, mechanism := range mechanisms() {
			t.Run(name+","+mechanism.String(), func(t *testing.T) {
				dir, leave := elsewhere(t)
				must(t, os.Mkdir("sub", 0o700))
				o := &flockctx.Options{Mode: flockctx.Shared, Mechanism: mechanism, Remove: true}
				l := flockctx.New(name, o)
				before := flockctx.New(name, o)
				must(t, before.Lock(t.Context()))
				leave()
				other := startAgent(t, filepath.Join(dir, "file"), flockctx.Options{Mechanism: mechanism})
				must(t, before.Convert(t.Context(), flockctx.Exclusive))
				if s := other.do("trylock"); s != "locked" {
					t.Errorf("after Convert, another process: %s", s)
				}
				must(t, before.Unlock())
				must(t, before.Lock(t.Context()))
				if s := other.do("trylock"); s != "locked" {
					t.Errorf("after Unlock and Lock, another process: %s", s)
				}
				wantErr(t, l.TryLock(), flockctx.ErrLocked)
				must(t, before.Unlock())
				must(t, l.Lock(t.Context())) // its first one
				if s := other.do("trylock"); s != "locked" {
					t.Errorf("after Lock of a handle of New, another process: %s", s)
				}
				if l.Name() != name {
					t.Errorf("the name is %q", l.Name())
				}
				must(t, before.Close())
				must(t, l.Close()) // and removes
				if _, err := os.Stat(filepath.Join(dir, "file")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the file is there: %v", err)
				}
				if left, _ := os.ReadDir("."); len(left) > 0 {
					t.Errorf("in the new working directory: %v", left)
				}
			})
		}
	}
}

func TestChdirWhileWaiting(t *testing.T) {
	dir, leave := elsewhere(t)
	holder := mustLock(t, "a", nil)
	one := newHandle(t, "a", nil)
	waiting := async(func() error { return one.Lock(t.Context()) })
	eventually(t, "the handle waits", func() bool { return flockctx.Waiters("a", flockctx.BSD) == 1 })
	var set *flockctx.Set
	all := async(func() (err error) {
		set, err = flockctx.LockAll(t.Context(), []string{"b", "a", "./b"}, nil)
		return err
	})
	eventually(t, "both wait", func() bool { return flockctx.Waiters("a", flockctx.BSD) == 2 })
	leave()
	must(t, holder.Close())
	must(t, soon(t, waiting, "Lock"))
	wantLocked(t, filepath.Join(dir, "a"), flockctx.Options{})
	must(t, one.Close())
	must(t, soon(t, all, "LockAll"))
	for _, name := range []string{"a", "b"} {
		wantLocked(t, filepath.Join(dir, name), flockctx.Options{})
	}
	must(t, set.Close())
}

// What is known of a lock that was not to be had does not depend on it either.
func TestChdirAfterAnError(t *testing.T) {
	dir, leave := elsewhere(t)
	startHolder(t, filepath.Join(dir, "file"), flockctx.Options{})
	_, err := flockctx.TryLock("file", nil)
	busy, ok := err.(*flockctx.BusyError)
	if !ok || busy.Path != "file" {
		t.Fatalf("%#v", err)
	}
	leave()
	if hs, err := busy.Holders(); err == nil && len(hs) != 1 || err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v, %v", hs, err)
	}
}

// Where there is no working directory any more, a relative path has no meaning, and an
// absolute one has.
func TestWorkingDirectoryThatIsGone(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the working directory cannot be removed")
	}
	path := tempPath(t)
	dir := filepath.Join(t.TempDir(), "gone")
	must(t, os.Mkdir(dir, 0o700))
	t.Chdir(dir)
	l := newHandle(t, "file", nil)
	must(t, os.Remove(dir))
	for name, lock := range map[string]func() error{
		"a handle of before": func() error { return l.Lock(t.Context()) },
		"Lock":               func() error { return second(flockctx.Lock(t.Context(), "file", nil)) },
		"TryLock":            func() error { return second(flockctx.TryLock("file", nil)) },
		"LockAll":            func() error { return second(flockctx.LockAll(t.Context(), []string{"file"}, nil)) },
	} {
		err := lock()
		if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != "file" || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %#v (%v)", name, err, err)
		}
	}
	mustLock(t, path, nil)
}

// The directory of a lock is removed while it is held: the lock can be given back, and
// not taken again.
func TestDirectoryThatIsRemoved(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the directory of an open file cannot be removed")
	}
	dir := filepath.Join(t.TempDir(), "gone")
	must(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, "file")
	l := mustLock(t, path, &flockctx.Options{Remove: true})
	must(t, os.RemoveAll(dir))
	must(t, l.Unlock())
	wantErr(t, l.TryLock(), fs.ErrNotExist)
	must(t, os.Mkdir(dir, 0o700))
	must(t, l.Lock(t.Context()))
	must(t, os.RemoveAll(dir))
	must(t, l.Close())
}
