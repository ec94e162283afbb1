package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sync/errgroup"
)

func somePaths(t *testing.T, n int) []string {
	t.Helper()
	dir := t.TempDir()
	paths := make([]string, n)
	for i := range paths {
		paths[i] = filepath.Join(dir, fmt.Sprint(i))
	}
	return paths
}

func TestLockAll(t *testing.T) {
	for _, mechanism := range mechanisms() {
		o := flockctx.Options{Mechanism: mechanism}
		paths := somePaths(t, 5)
		s, err := flockctx.LockAll(t.Context(), paths, &o)
		must(t, err)
		files := s.Files()
		if len(files) != len(paths) {
			t.Fatalf("%d files", len(files))
		}
		for i, l := range files {
			if l.Name() != paths[i] || !l.Locked() {
				t.Errorf("file %d is %s, locked %v", i, l.Name(), l.Locked())
			}
			wantLocked(t, paths[i], o)
		}
		files[0] = nil // the caller's copy
		must(t, s.Files()[1].Close())
		must(t, s.Files()[2].Unlock())
		wantFree(t, paths[1], o)
		wantFree(t, paths[2], o)
		wantLocked(t, paths[0], o)
		must(t, s.Close())
		for _, path := range paths {
			wantFree(t, path, o)
		}
		wantErr(t, s.Close(), fs.ErrClosed)
	}
	s, err := flockctx.LockAll(t.Context(), nil, nil)
	must(t, err)
	if len(s.Files()) != 0 {
		t.Error("files of an empty set")
	}
	must(t, s.Close())
}

// Paths that name one file are one lock.
func TestLockAllCollapsesLinks(t *testing.T) {
	paths := somePaths(t, 4)
	must(t, os.WriteFile(paths[0], nil, 0o600))
	must(t, os.Link(paths[0], paths[1]))
	err := os.Symlink(paths[0], paths[2])
	if err == nil {
		_, err = os.Lstat(paths[2]) // wine 8 only says that it made one
	}
	if err != nil {
		if runtime.GOOS == "windows" {
			t.Skip("SKIP: no symlinks: ", err)
		}
		t.Fatal(err)
	}
	before := countDescriptors()
	all := []string{paths[2], paths[0], paths[1], paths[3], paths[0], paths[3], filepath.Join(filepath.Dir(paths[0]), ".", "0")}
	for _, o := range []flockctx.Options{{}, {Mode: flockctx.Shared}} {
		s, err := flockctx.LockAll(t.Context(), all, &o)
		must(t, err)
		if f := s.Files(); len(f) != 2 || f[0].Name() != paths[2] || f[1].Name() != paths[3] {
			t.Errorf("%v", f)
		}
		must(t, s.Close())
	}
	if after := countDescriptors(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	wantFree(t, paths[0], flockctx.Options{})
}

// All or nothing.
func TestLockAllRollsBack(t *testing.T) {
	for _, wait := range waits {
		for _, foreign := range []bool{false, true} {
			paths := somePaths(t, 5)
			for _, path := range paths { // so that some are locked before the busy one
				must(t, os.WriteFile(path, nil, 0o600))
			}
			if foreign {
				startHolder(t, paths[3], flockctx.Options{})
			} else {
				mustLock(t, paths[3], nil)
			}
			descriptors, queues := countDescriptors(), flockctx.Queues()
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				for flockctx.WaitingOutside()+flockctx.Waiters(paths[3], flockctx.BSD) == 0 {
					time.Sleep(time.Millisecond)
				}
				cancel(context.DeadlineExceeded)
			}()
			_, err := flockctx.LockAll(ctx, paths, &flockctx.Options{Wait: wait, Remove: true})
			wantErr(t, err, context.DeadlineExceeded)
			busy, ok := err.(*flockctx.BusyError)
			if !ok || busy.Path != paths[3] || !busy.Timeout() || busy.Waited == 0 {
				t.Errorf("%#v", err)
			}
			if n := countDescriptors(); n > descriptors {
				t.Errorf("%d descriptors before, %d after", descriptors, n)
			}
			if n := flockctx.Queues(); n > queues {
				t.Errorf("%d queues before, %d after", queues, n)
			}
			for i, path := range paths {
				if i != 3 {
					wantFree(t, path, flockctx.Options{Flag: os.O_RDWR}) // nor was it removed
				}
			}
		}
	}
	paths := somePaths(t, 3)
	paths[1] = filepath.Join(paths[1], "missing")
	_, err := flockctx.LockAll(t.Context(), paths, nil)
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != paths[1] || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%#v", err)
	}
	wantFree(t, paths[0], flockctx.Options{})
}

// Sets in any order, of several processes and goroutines, beside removals, never
// wait for each other in a circle.
func TestLockAllNeverDeadlocks(t *testing.T) {
	paths := somePaths(t, 6)
	var g errgroup.Group
	for range 3 {
		g.Go(func() error {
			cmd := newCommand(t, "sets", paths)
			hung := time.AfterFunc(patience, func() {
				if cmd.Process != nil {
					cmd.Process.Kill()
				}
			})
			defer hung.Stop()
			out, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		})
	}
	must(t, g.Wait())
}

var _ = registerCommand("sets", func(paths []string) error {
	var g errgroup.Group
	counts := make([]int, len(paths)) // each guarded by its file lock
	for worker := range 4 {
		g.Go(func() error {
			for range 60 {
				var set []string
				var indexes []int
				for _, i := range rand.Perm(len(paths))[:1+rand.IntN(len(paths)-1)] {
					set = append(set, paths[i])
					indexes = append(indexes, i)
				}
				o := &flockctx.Options{Remove: worker == 0, Wait: waits[worker%2], Poll: flockctx.Backoff{Max: 2 * time.Millisecond}}
				s, err := flockctx.LockAll(context.Background(), set, o)
				if err != nil {
					return err
				}
				for _, i := range indexes {
					counts[i]++
				}
				if err := s.Close(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
})

// A file of the set that is replaced while the others are waited for is locked anew.
func TestLockAllOfAFileThatIsReplaced(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a locked file cannot be replaced")
	}
	paths := somePaths(t, 2)
	for _, path := range paths {
		must(t, os.WriteFile(path, nil, 0o600))
	}
	for _, held := range paths { // one of the two is locked first by LockAll
		for _, replaced := range paths {
			holder := mustLock(t, held, nil)
			var s *flockctx.Set
			done := async(func() (err error) { s, err = flockctx.LockAll(t.Context(), paths, nil); return err })
			eventually(t, "it waits", func() bool { return flockctx.Waiters(held, flockctx.BSD) == 1 })
			must(t, os.WriteFile(replaced+".new", nil, 0o600))
			must(t, os.Rename(replaced+".new", replaced))
			must(t, holder.Close())
			must(t, soon(t, done, "LockAll"))
			for i, l := range s.Files() {
				wantLocked(t, paths[i], flockctx.Options{})
				open, err := l.File().Stat()
				must(t, err)
				named, err := os.Stat(paths[i])
				must(t, err)
				if !os.SameFile(open, named) {
					t.Errorf("held %s, replaced %s: the lock of %s is on another file", held, replaced, paths[i])
				}
			}
			must(t, s.Close())
		}
	}
}

// Close releases all, also where it cannot remove one of the files.
func TestSetCloseThatCannotRemove(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("directories cannot be locked")
	}
	paths := somePaths(t, 3)
	must(t, os.Mkdir(paths[1], 0o700))
	s, err := flockctx.LockAll(t.Context(), paths, &flockctx.Options{Remove: true})
	must(t, err)
	err = s.Close()
	if pathErr, ok := errors.AsType[*fs.PathError](err); !ok || pathErr.Path != paths[1] || pathErr.Op != "remove" {
		t.Fatalf("%v", err)
	}
	for _, path := range paths {
		wantFree(t, path, flockctx.Options{})
	}
	wantErr(t, s.Close(), fs.ErrClosed)
}

// Every path that was given names a locked file at the end, also one that named the
// same file as another at the beginning.
func TestLockAllVerifiesEachName(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIP: a name of an open file goes late here")
	}
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	holder := mustLock(t, a, nil)
	must(t, os.Link(a, b))
	done := make(chan *flockctx.Set, 1)
	go func() {
		set, err := flockctx.LockAll(context.Background(), []string{a, b}, nil)
		if err != nil {
			t.Error(err)
		}
		done <- set
	}()
	eventually(t, "LockAll waits", func() bool { return flockctx.Waiters(a, flockctx.BSD) == 1 })
	must(t, os.Remove(b))
	must(t, os.WriteFile(b, nil, 0o600)) // a file of its own from now on
	must(t, holder.Close())
	set := <-done
	defer set.Close()
	if n := len(set.Files()); n != 2 {
		t.Errorf("%d files are locked, want 2", n)
	}
	for _, path := range []string{a, b} {
		if _, err := flockctx.TryLock(path, nil); !errors.Is(err, flockctx.ErrLocked) {
			t.Errorf("%s: %v, want it to be locked", path, err)
		}
	}
}

// A LockAll that fails empties none of its files.
func TestLockAllTruncatesLast(t *testing.T) {
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")}
	for _, p := range paths {
		must(t, os.WriteFile(p, []byte("text"), 0o600))
	}
	length := func() (n int) {
		for _, p := range paths {
			b, err := os.ReadFile(p)
			must(t, err)
			n += len(b)
		}
		return n
	}
	opts := &flockctx.Options{Flag: os.O_RDWR | os.O_TRUNC}
	for i := range paths {
		holder := mustLock(t, paths[i], nil)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			_, err := flockctx.LockAll(ctx, paths, opts)
			done <- err
		}()
		eventually(t, "LockAll waits", func() bool { return flockctx.Waiters(paths[i], flockctx.BSD) == 1 })
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("LockAll: %v, want it to be cancelled", err)
		}
		if n := length(); n != 12 {
			t.Errorf("%d bytes are left of 12", n)
		}
		must(t, holder.Close())
	}
	set, err := flockctx.LockAll(context.Background(), paths, opts)
	must(t, err)
	must(t, set.Close())
	if n := length(); n != 0 {
		t.Errorf("%d bytes are left of files that were locked with O_TRUNC", n)
	}
}
