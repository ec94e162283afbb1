//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package flockctx_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// Options.Remove: the file that is locked goes, and nothing else.

func TestRemove(t *testing.T) {
	o := &flockctx.Options{Remove: true}
	gone := func(path string) {
		t.Helper()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the file is there: %v", err)
		}
	}
	t.Run("Close removes", func(t *testing.T) {
		path := tempPath(t)
		l := mustLock(t, path, o)
		must(t, l.Unlock()) // does not
		must(t, l.Lock(t.Context()))
		must(t, l.Close())
		gone(path)
	})
	t.Run("Close of an unlocked handle does not", func(t *testing.T) {
		path := tempPath(t)
		l := mustLock(t, path, o)
		must(t, l.Unlock())
		must(t, l.Close())
		wantFree(t, path, flockctx.Options{Flag: os.O_RDWR})
	})
	t.Run("not the successor", func(t *testing.T) {
		path := tempPath(t)
		l := mustLock(t, path, o)
		changes["replace"](t, path)
		must(t, l.Close())
		if b, err := os.ReadFile(path); err != nil || string(b) != "new" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("removed already", func(t *testing.T) {
		path := tempPath(t)
		l := mustLock(t, path, o)
		must(t, os.Remove(path))
		must(t, l.Close())
	})
	t.Run("the last of the shared", func(t *testing.T) {
		for _, mechanism := range mechanisms() {
			path := tempPath(t)
			o := &flockctx.Options{Remove: true, Mode: flockctx.Shared, Mechanism: mechanism}
			a, b := mustLock(t, path, o), mustLock(t, path, o)
			must(t, a.Close())
			if s := startAgent(t, path, flockctx.Options{Mechanism: mechanism}).do("trylock"); s != "locked" {
				t.Errorf("another process beside a shared holder: %s", s)
			}
			wantFree(t, path, flockctx.Options{Mode: flockctx.Shared, Mechanism: mechanism, Flag: os.O_RDWR})
			must(t, b.Close())
			gone(path)
		}
	})
	t.Run("not without the lock", func(t *testing.T) {
		// The caller closed File, so the lock is somebody else's now.
		path := tempPath(t)
		l := mustLock(t, path, o)
		must(t, l.File().Close())
		other := startHolder(t, path, flockctx.Options{})
		l.Close()
		if _, err := os.Stat(path); err != nil {
			t.Errorf("removed under another holder's lock: %v", err)
		}
		other.must("unlock")
	})
	t.Run("not a directory", func(t *testing.T) {
		for _, mode := range []flockctx.Mode{flockctx.Exclusive, flockctx.Shared} {
			for _, name := range []string{"", "link"} {
				dir := t.TempDir()
				path := dir
				if name != "" {
					path = filepath.Join(t.TempDir(), name)
					must(t, os.Symlink(dir, path))
				}
				l := mustLock(t, path, &flockctx.Options{Remove: true, Mode: mode})
				waiting := async(func() error { return l.Lock(context.Background()) })
				eventually(t, "it waits", func() bool { return flockctx.HandleWaiters(l) == 1 })
				wantNotRemoved(t, l, syscall.EISDIR)
				wantErr(t, soon(t, waiting, "a waiter after Close"), fs.ErrClosed)
				if _, err := os.Stat(path); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// wantNotRemoved closes l, which has Remove, and wants it to say that the file is still
// there, for reason why; the lock is released all the same.
func wantNotRemoved(t *testing.T, l *flockctx.Flock, why error) {
	t.Helper()
	err := l.Close()
	wantErr(t, err, why)
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Op != "remove" || pathErr.Path != l.Name() {
		t.Errorf("%#v, want an *fs.PathError of remove and %s", err, l.Name())
	}
	if l.Locked() {
		t.Error("locked after Close")
	}
	wantFree(t, l.Name(), flockctx.Options{})
	startHolder(t, l.Name(), flockctx.Options{}).must("close")
	wantErr(t, l.Close(), fs.ErrClosed)
}

// Lock, work and remove under 8 goroutines: one at a time, and nothing lost.
func TestRemoveUnder8Goroutines(t *testing.T) {
	for _, wait := range waits {
		t.Run(wait.String(), func(t *testing.T) {
			path := tempPath(t)
			before := countDescriptors()
			var inside atomic.Int32
			var wg sync.WaitGroup
			count := 0 // guarded by the file lock
			const goroutines, rounds = 8, 150
			for range goroutines {
				wg.Go(func() {
					for i := range rounds {
						l, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Remove: i%4 != 0, Wait: wait})
						if err != nil {
							t.Error(err)
							return
						}
						if n := inside.Add(1); n != 1 {
							t.Errorf("%d inside", n)
						}
						count++
						if i%8 == 0 {
							runtime.Gosched()
						}
						inside.Add(-1)
						if err := l.Close(); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			if count != goroutines*rounds {
				t.Errorf("count %d, want %d", count, goroutines*rounds)
			}
			if after := countDescriptors(); after > before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

// Through a symbolic link the file that is locked is removed, under its own name: if the
// link went, two could be inside, one by each name. The link stays and dangles.
func TestRemoveThroughASymlink(t *testing.T) {
	for name, link := range map[string]func(t *testing.T, dir string) (path string){
		"absolute": func(t *testing.T, dir string) string {
			must(t, os.Symlink(filepath.Join(dir, "file"), filepath.Join(dir, "link")))
			return filepath.Join(dir, "link")
		},
		"relative": func(t *testing.T, dir string) string {
			must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
			must(t, os.Symlink("../file", filepath.Join(dir, "sub", "link")))
			return filepath.Join(dir, "sub", "link")
		},
		"chain": func(t *testing.T, dir string) string {
			must(t, os.Symlink("file", filepath.Join(dir, "link1")))
			must(t, os.Symlink(filepath.Join(dir, "link1"), filepath.Join(dir, "link2")))
			must(t, os.Symlink("./link2", filepath.Join(dir, "link3")))
			return filepath.Join(dir, "link3")
		},
		"directory": func(t *testing.T, dir string) string {
			must(t, os.Symlink(".", filepath.Join(dir, "here")))
			return filepath.Join(dir, "here", "file")
		},
		"dangling": func(t *testing.T, dir string) string {
			must(t, os.Remove(filepath.Join(dir, "file")))
			must(t, os.Symlink("file", filepath.Join(dir, "link")))
			return filepath.Join(dir, "link")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "file")
			must(t, os.WriteFile(file, nil, 0o600))
			path := link(t, dir)
			l := mustLock(t, path, &flockctx.Options{Remove: true})
			wantLocked(t, file, flockctx.Options{})
			must(t, l.Close())
			if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the file is there: %v", err)
			}
			if filepath.Base(path) != "file" {
				if _, err := os.Lstat(path); err != nil {
					t.Errorf("the link is gone: %v", err)
				}
			}
			mustLock(t, path, nil)
			wantLocked(t, file, flockctx.Options{})
		})
	}
}

// What took the file's place is left alone, whatever the path is by now.
func TestRemoveLeavesWhatTookThePlace(t *testing.T) {
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			path := tempPath(t)
			l := mustLock(t, path, &flockctx.Options{Remove: true})
			change(t, path)
			before, _ := os.ReadDir(filepath.Dir(path))
			err := l.Close()
			if name == "directory" {
				wantErr(t, err, syscall.EISDIR)
			} else {
				must(t, err)
			}
			if after, _ := os.ReadDir(filepath.Dir(path)); len(after) != len(before) {
				t.Errorf("%v was left of %v", after, before)
			}
		})
	}
	t.Run("link swapped", func(t *testing.T) {
		dir := t.TempDir()
		link := filepath.Join(dir, "link")
		for _, name := range []string{"old", "new"} {
			must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
		}
		must(t, os.Symlink("old", link))
		l := mustLock(t, link, &flockctx.Options{Remove: true})
		must(t, os.Symlink("new", link+"2"))
		must(t, os.Rename(link+"2", link))
		must(t, l.Close())
		for _, name := range []string{"old", "new", "link"} {
			if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("hard link", func(t *testing.T) {
		path := tempPath(t)
		l := mustLock(t, path, &flockctx.Options{Remove: true})
		must(t, os.Link(path, path+"2"))
		must(t, l.Close())
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the name that was locked is there: %v", err)
		}
		if _, err := os.Lstat(path + "2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("FIFO", func(t *testing.T) {
		path := tempPath(t)
		l := mustLock(t, path, &flockctx.Options{Remove: true})
		must(t, os.Remove(path))
		must(t, unix.Mkfifo(path, 0o600))
		must(t, l.Close())
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	})
}
