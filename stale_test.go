//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// changes are what can happen to a path while somebody waits for its lock.
var changes = map[string]func(t *testing.T, path string){
	"unlink": func(t *testing.T, path string) { must(t, os.Remove(path)) },
	"replace": func(t *testing.T, path string) {
		must(t, os.WriteFile(path+".new", []byte("new"), 0o600))
		must(t, os.Rename(path+".new", path))
	},
	"move": func(t *testing.T, path string) { must(t, os.Rename(path, path+".old")) },
	"move and recreate": func(t *testing.T, path string) {
		must(t, os.Rename(path, path+".old"))
		must(t, os.WriteFile(path, nil, 0o600))
	},
	"symlink elsewhere": func(t *testing.T, path string) {
		must(t, os.Remove(path))
		must(t, os.WriteFile(path+".target", nil, 0o600))
		must(t, os.Symlink(path+".target", path))
	},
	"directory": func(t *testing.T, path string) {
		must(t, os.Remove(path))
		must(t, os.Mkdir(path, 0o700))
	},
}

// wantCurrent fails unless l's file is the one that path names.
func wantCurrent(t *testing.T, l *flockctx.Flock, path string) {
	t.Helper()
	open, err := l.File().Stat()
	must(t, err)
	named, err := os.Stat(path)
	must(t, err)
	if !os.SameFile(open, named) {
		t.Fatal("the lock is on another file than the path names")
	}
}

// A trap: the holder unlinks and unlocks; the waiter holds a dead inode, and a
// third one locks the new file.
func TestLockIsOnTheFileThatThePathNames(t *testing.T) {
	queues := flockctx.Queues()
	for name, change := range changes {
		for _, mechanism := range mechanisms() {
			if name == "directory" && mechanism == flockctx.OFD {
				continue // a directory cannot be opened for writing
			}
			for _, wait := range waits {
				for _, foreign := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s,%v,%v,foreign=%v", name, mechanism, wait, foreign), func(t *testing.T) {
						path := tempPath(t)
						o := flockctx.Options{Mechanism: mechanism, Wait: wait}
						var release func()
						waiting := func() bool { return flockctx.Waiters(path, mechanism) == 1 }
						if foreign {
							holder := startHolder(t, path, o)
							release = func() { holder.must("unlock") }
							waiting = func() bool { return flockctx.WaitingOutside() == 1 }
						} else {
							holder := mustLock(t, path, &o)
							release = func() { must(t, holder.Unlock()) }
						}
						l := newHandle(t, path, &o)
						done := async(func() error { return l.Lock(t.Context()) })
						eventually(t, "it waits", waiting)
						change(t, path)
						release()
						must(t, soon(t, done, "Lock of the new file"))
						wantCurrent(t, l, path)
						wantLocked(t, path, o)
						if s := startAgent(t, path, o).do("trylock"); s != "locked" {
							t.Errorf("another process: %s", s)
						}
						must(t, l.Close())
						wantFree(t, path, o)
					})
				}
			}
		}
	}
	if n := flockctx.Queues(); n > queues {
		t.Errorf("%d queues before, %d after", queues, n)
	}
}

// The context counts on while Lock starts again on the successor.
func TestContextCountsOnAfterAReplacement(t *testing.T) {
	path := tempPath(t)
	first := startHolder(t, path, flockctx.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	done := async(func() error { _, err := flockctx.Lock(ctx, path, nil); return err })
	eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
	changes["replace"](t, path)
	mustLock(t, path, nil) // the successor
	first.must("unlock")
	eventually(t, "it waits for the successor", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
	cancel()
	err := soon(t, done, "Lock after cancel")
	wantErr(t, err, context.Canceled)
	if busy, ok := err.(*flockctx.BusyError); !ok || busy.Waited == 0 {
		t.Errorf("%#v", err)
	}
}

// Where the successor cannot be opened, Lock says so.
func TestReplacementThatCannotBeLocked(t *testing.T) {
	path := tempPath(t)
	holder := startHolder(t, path, flockctx.Options{})
	done := async(func() error { _, err := flockctx.Lock(t.Context(), path, nil); return err })
	eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
	must(t, os.RemoveAll(filepath.Dir(path)))
	holder.must("unlock")
	err := soon(t, done, "Lock after its directory is gone")
	wantErr(t, err, fs.ErrNotExist)
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != path {
		t.Errorf("%#v", err)
	}
}

func TestRelockAfterReplace(t *testing.T) {
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			path := tempPath(t)
			before := countDescriptors()
			l := newHandle(t, path, nil)
			must(t, l.Lock(t.Context()))
			old := l.File()
			must(t, l.Unlock())
			change(t, path)
			must(t, l.TryLock())
			wantCurrent(t, l, path)
			if l.File() == old {
				t.Error("the same os.File for another file")
			}
			wantLocked(t, path, flockctx.Options{})
			must(t, l.Unlock())
			must(t, l.Lock(t.Context()))
			must(t, l.Close())
			if after := countDescriptors(); after > before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

// A handle that kept the former file open asks for the lock of the one that the path names,
// also where somebody still has the former one's.
func TestFormerFileIsNotWaitedFor(t *testing.T) {
	calls := map[string]func(*flockctx.Flock, context.Context) error{
		"TryLock": func(l *flockctx.Flock, _ context.Context) error { return l.TryLock() },
		"Lock":    (*flockctx.Flock).Lock,
	}
	for name, change := range changes {
		for call, lock := range calls {
			for _, foreign := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, foreign=%v", name, call, foreign), func(t *testing.T) {
					path := tempPath(t)
					l := newHandle(t, path, nil)
					must(t, l.Lock(t.Context()))
					must(t, l.Unlock())
					if call == "Lock" && !flockctx.IsLocal(l) {
						t.Skip("not known to be a local file system, where Lock looks before it waits")
					}
					if foreign {
						startHolder(t, path, flockctx.Options{})
					} else {
						mustLock(t, path, nil)
					}
					wantErr(t, l.TryLock(), flockctx.ErrLocked)
					change(t, path)
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					must(t, lock(l, ctx))
					wantCurrent(t, l, path)
				})
			}
		}
	}
}

// A handle that is locked does not notice, and its Unlock does not mind.
func TestReplaceWhileLocked(t *testing.T) {
	path := tempPath(t)
	l := mustLock(t, path, nil)
	changes["replace"](t, path)
	wantFree(t, path, flockctx.Options{})
	must(t, l.Unlock())
	must(t, l.Lock(t.Context()))
	wantCurrent(t, l, path)
}

// A trap: a dangling symlink recursed until the stack overflowed; a symlink and
// its target were taken for two locks.
func TestSymlinks(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	t.Run("dangling", func(t *testing.T) {
		must(t, os.Symlink("target", at("dangling")))
		l := mustLock(t, at("dangling"), nil)
		wantCurrent(t, l, at("target")) // as open(2) with O_CREAT does
		wantLocked(t, at("target"), flockctx.Options{})
	})
	t.Run("dangling into a missing folder", func(t *testing.T) {
		must(t, os.Symlink("nowhere/target", at("lost")))
		_, err := flockctx.Lock(t.Context(), at("lost"), nil)
		wantErr(t, err, fs.ErrNotExist)
	})
	t.Run("loop", func(t *testing.T) {
		must(t, os.Symlink("loop2", at("loop1")))
		must(t, os.Symlink("loop1", at("loop2")))
		_, err := flockctx.Lock(t.Context(), at("loop1"), nil)
		if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != at("loop1") {
			t.Errorf("%#v", err)
		}
		wantErr(t, err, errLoop)
	})
	t.Run("one lock with its target", func(t *testing.T) {
		must(t, os.WriteFile(at("file"), nil, 0o600))
		must(t, os.Symlink("file", at("link")))
		must(t, os.Link(at("file"), at("hard")))
		l := mustLock(t, at("link"), nil)
		for _, name := range []string{"file", "link", "hard"} {
			wantLocked(t, at(name), flockctx.Options{})
		}
		must(t, l.Close())
		mustLock(t, at("hard"), nil)
		wantLocked(t, at("link"), flockctx.Options{})
	})
}

func TestFIFOSocketAndDeviceAreRefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	for name, path := range specialFiles(t, dir) {
		t.Run(name, func(t *testing.T) {
			for _, flag := range []int{0, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREATE, os.O_RDONLY | os.O_APPEND} {
				done := async(func() error {
					_, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Flag: flag})
					return err
				})
				err := soon(t, done, "Lock of a "+name)
				pathErr, ok := err.(*fs.PathError)
				if !ok || pathErr.Path != path || !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("flag %#x: %#v (%v), want an *fs.PathError that matches ErrUnsupported", flag, err, err)
				}
			}
		})
	}
}

// With flock(2) a conversion ends on the file that the path names, or not at all: a
// path that names something which cannot even be looked at has lost it.
func TestConvertOfAPathThatCannotBeVerified(t *testing.T) {
	path := tempPath(t)
	l := mustLock(t, path, &flockctx.Options{Mode: flockctx.Shared})
	must(t, os.Remove(path))
	must(t, unix.Mkfifo(path, 0o600))
	err := l.Convert(t.Context(), flockctx.Exclusive)
	wantErr(t, err, flockctx.ErrNotLocked)
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != path || pathErr.Op != "convert" {
		t.Errorf("%#v, want an *fs.PathError of convert and the path", err)
	}
	for _, part := range []string{path, "convert", "lost"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if l.Locked() {
		t.Error("the handle says that it is locked")
	}
	wantErr(t, l.Unlock(), flockctx.ErrNotLocked)
	must(t, os.Remove(path))
	must(t, l.Lock(t.Context())) // the handle is of use
}

// A file that cannot be written is locked read-only.
func TestReadOnlyFile(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("SKIP: root may write every file; see TestReadOnlyFileOfSomebodyElse")
	}
	path := tempPath(t)
	must(t, os.WriteFile(path, []byte("x"), 0o400))
	l := mustLock(t, path, nil)
	b := make([]byte, 1)
	if _, err := l.File().Read(b); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	wantLocked(t, path, flockctx.Options{})
}

// A program that runs cannot be opened for writing (ETXTBSY), but locked.
func TestRunningProgramCanBeLocked(t *testing.T) {
	self, err := os.Executable()
	must(t, err)
	l := mustLock(t, self, nil)
	wantLocked(t, self, flockctx.Options{})
	must(t, l.Close())
}

// No check before the open, nothing is truncated through a
// symlink that must not be followed.
func TestNoFollow(t *testing.T) {
	dir := t.TempDir()
	victim, link := filepath.Join(dir, "victim"), filepath.Join(dir, "link")
	must(t, os.WriteFile(victim, []byte("content"), 0o640))
	must(t, os.Symlink(victim, link))
	o := &flockctx.Options{Flag: os.O_RDWR | os.O_CREATE | os.O_TRUNC | noFollow, Perm: 0o600}
	_, err := flockctx.Lock(t.Context(), link, o)
	wantErr(t, err, errLoop)
	b, err := os.ReadFile(victim)
	must(t, err)
	st, err := os.Stat(victim)
	must(t, err)
	if string(b) != "content" || st.Mode().Perm() != 0o640 {
		t.Errorf("the victim is %q, %v", b, st.Mode())
	}
	// The symlink comes while a Lock waits for the file: the lock is on what was
	// opened, or there is none; the victim stays as it is.
	path := filepath.Join(dir, "path")
	must(t, os.WriteFile(path, nil, 0o600))
	holder := mustLock(t, path, nil)
	done := async(func() error { _, err := flockctx.Lock(t.Context(), path, o); return err })
	eventually(t, "it waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
	must(t, os.Remove(path))
	must(t, os.Symlink(victim, path))
	must(t, holder.Unlock())
	wantErr(t, soon(t, done, "Lock of a symlink"), errLoop)
	if b, _ := os.ReadFile(victim); string(b) != "content" {
		t.Errorf("the victim is %q", b)
	}
}

// An agent that is killed holds nothing.
func TestLockOfAKilledProcessIsFree(t *testing.T) {
	path := tempPath(t)
	holder := startHolder(t, path, flockctx.Options{})
	done := async(func() error {
		l, err := flockctx.Lock(t.Context(), path, nil)
		if err == nil {
			err = l.Close()
		}
		return err
	})
	eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
	must(t, holder.cmd.Process.Kill())
	must(t, soon(t, done, "Lock after the holder was killed"))
}
