// Package flock has the exported API of github.com/gofrs/flock, version 0.13, on top
// of flockctx: a program that uses it is carried over by changing the import.
//
//	import "github.com/flockctx/flockctx/gofrs"
//
// What programs rely on is as it was: Lock on a held lock and Unlock without one
// return nil, Unlock closes the file, a handle can be locked again after Close, and
// TryLockContext returns the error of its context itself. Three faults are gone:
//
//   - One handle may be used by many goroutines. The lock belongs to the goroutine
//     that took it: only that one gets it again at once, others wait or get false.
//   - The lock is on the file that the path names when Lock returns. A waiter whose
//     file was removed or replaced meanwhile locks the successor.
//   - Locked and RLocked tell the truth. An upgrade that fails keeps the shared lock,
//     or says that it is lost.
//
// Waiting is that of [flockctx.Lock]: in the kernel where it can be, so that a lock is
// taken when it is released and not at the end of an interval. Locks are advisory, and
// a process that ends frees its locks.
//
// New programs should use flockctx itself. "go fix" renames the calls that have a
// counterpart of another name there; docs/migrating.md has the others.
package flock

import (
	"errors"
	"io/fs"
	"os"
	"sync"

	"github.com/flockctx/flockctx"
)

// An Option is an argument of [New].
type Option func(f *Flock)

// SetFlag sets the flag with which the file is opened, as for [os.OpenFile]. Without
// it the file is opened for reading and writing, and created if it is missing; or for
// reading only where writing is refused. O_TRUNC takes effect once the lock is held.
func SetFlag(flag int) Option {
	return func(f *Flock) {
		f.opts.Flag, f.opts.ReadOnly = flag, flag == os.O_RDONLY
	}
}

// SetPermissions sets the permissions, before umask, of a file that a lock creates.
// Without it, and for 0, they are 0o600.
func SetPermissions(perm fs.FileMode) Option {
	return func(f *Flock) {
		f.opts.Perm = perm & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	}
}

// A Flock is a handle on a file that can be locked, exclusive by Lock and shared by
// RLock. Its methods may be called by several goroutines at the same time, and none of
// them waits for a Lock of another one, but those that want the lock.
type Flock struct {
	path string
	opts flockctx.Options // but for the mode

	mu sync.Mutex // guards fh; not held in a call that can wait
	// fh has a locked handle for each goroutine that took the lock: one that is
	// exclusive, or any number that are shared. flockctx lets no others in. One that
	// a goroutine is about to close may be unlocked already. The name is the one that
	// gofrs/flock's own tests look at.
	fh map[goroutine]*flockctx.Flock
}

// New returns an unlocked handle on the file that path names. It does no I/O.
func New(path string, opts ...Option) *Flock {
	f := &Flock{path: path}
	for _, opt := range opts {
		opt(f)
	}
	return f
}

// NewFlock is [New] without options.
//
// Deprecated: Use [New].
//
//go:fix inline
func NewFlock(path string) *Flock { return New(path) }

// Name returns the path that the handle was made with.
func (f *Flock) Name() string { return f.path }

// Path is [Flock.Name], as gofrs/flock calls it.
//
//go:fix inline
func (f *Flock) Path() string { return f.Name() }

// String is [Flock.Name].
//
//go:fix inline
func (f *Flock) String() string { return f.Name() }

// Locked reports whether a goroutine holds the lock exclusive. By the time it returns
// this may have changed, unless only the caller's goroutine uses the handle.
func (f *Flock) Locked() bool { return f.holds(flockctx.Exclusive) }

// RLocked reports whether a goroutine holds the lock shared, as Locked does.
func (f *Flock) RLocked() bool { return f.holds(flockctx.Shared) }

func (f *Flock) holds(m flockctx.Mode) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.fh {
		if h.Mode() == m {
			return true
		}
	}
	return false
}

// Stat describes the locked file, or the one that the path names where the lock is
// not held.
func (f *Flock) Stat() (fs.FileInfo, error) {
	var file *os.File
	f.mu.Lock()
	for _, h := range f.fh {
		file = h.File()
	}
	f.mu.Unlock()
	if file != nil {
		if info, err := file.Stat(); !errors.Is(err, fs.ErrClosed) { // by an Unlock meanwhile
			return info, err
		}
	}
	return os.Stat(f.path)
}
