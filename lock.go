package flockctx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/sys"
)

// A Flock is a handle on one lock of one file. Its methods are safe for concurrent
// use. Every handle excludes every other as their modes say, in this process and
// elsewhere; one handle shared by goroutines works as a mutex, whatever its mode:
// the second Lock waits for the Unlock of the first.
//
// A handle that holds its lock is not garbage: the lock stays held until Unlock,
// Close or the end of the process, even where the program forgot the handle. An
// unlocked, forgotten handle gives its descriptor back.
//
// What Flock does not do: it does not keep a program that asks for no lock from
// using the file, and it does not notice that the file was removed or replaced
// while the lock is held.
//
// A handle is made by [New], [Lock], [TryLock], [LockFile] or a like function. With a nil
// one, and the zero Flock, Lock and the others fail with [fs.ErrInvalid].
type Flock struct {
	at       string    // what the path meant when the handle was made: an absolute one
	given    *string   // the path as the caller gave it, where that is another one
	opts     *settings // never changed, maybe shared with other handles
	borrowed bool      // the file came from LockFile and is the caller's

	// A goroutine that has set state to locking, unlocking or converting owns
	// desc, q, granted and fresh until it sets it anew.
	fresh   bool // desc was opened for the Lock to come, which closes it where it fails
	state   state
	closing bool // Close has begun: no goroutine may lock any more
	taken   bool // a goroutine has the handle, from the beginning of Lock to the end of Unlock; see others
	mode    gate.Mode

	mu     sync.Mutex // guards all from fresh to guard; no system call that can wait is made under it
	others *others    // made by the first goroutine that waits for another one

	desc    sys.Descriptor
	q       *queue           // nil while no file is open
	granted int64            // nanotime of the grant, if a tracer was told, else 0
	guard   *runtime.Cleanup // gives back what an unlocked, forgotten handle has open; from the first Unlock until the file is closed

	nextHolder, prevHolder *Flock // q.holders; guarded by its mutex
}

// unmade reports whether no function of this package has made the handle.
func (l *Flock) unmade() bool { return l == nil || l.opts == nil }

func errUnmade(op string) error { return pathError(op, "(no handle)", fs.ErrInvalid) }

// where returns the path for a look at the file.
func (l *Flock) where() string {
	if root := l.opts.Root; root != nil && !l.borrowed {
		return filepath.Join(root.Name(), l.at)
	}
	return l.at
}

// New returns an unlocked handle for the file that path names. A relative path means
// the working directory of this moment, whatever os.Chdir does later. New does no other
// I/O; what is wrong with path or opts is reported by Lock. Use it for a lock that is
// taken more than once: it keeps the file open between Unlock and Lock.
func New(path string, opts *Options) *Flock {
	l := &Flock{at: path, opts: opts.settings()}
	l.mode = gate.Mode(l.opts.Mode)
	if path != "" && l.opts.Root == nil && !filepath.IsAbs(path) {
		l.fix(path)
	}
	return l
}

// Lock locks the file that path names, waiting until ctx is done. It is New
// followed by [Flock.Lock]; see there for what holds when it returns. The lock is
// released by Unlock or Close of the handle.
func Lock(ctx context.Context, path string, opts *Options) (*Flock, error) {
	a := newAttempt(ctx)
	return lockNew(path, opts, &a)
}

// TryLock locks the file that path names if that needs no waiting. It is New
// followed by [Flock.TryLock]; see there for what holds when it returns.
func TryLock(path string, opts *Options) (*Flock, error) {
	a := newTry()
	return lockNew(path, opts, &a)
}

// Do locks the file that path names, calls fn with the handle, and releases the
// lock when fn returns, panics or calls [runtime.Goexit]. ctx governs the wait for
// the lock only. Do returns the error of Lock, in which case fn was not called, or
// fn's error joined with that of the release. fn may Unlock, Lock, Convert and
// Close the handle. A nil fn panics before anything is done.
func Do(ctx context.Context, path string, opts *Options, fn func(*Flock) error) (err error) {
	if fn == nil {
		panic("flockctx: Do with a nil function")
	}
	l, err := Lock(ctx, path, opts)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := l.Close(); cerr != nil && !errors.Is(cerr, fs.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}()
	return fn(l)
}

// Lock locks the handle's file in the handle's mode, waiting until ctx is done.
// ctx governs the wait, not the lock: its end after Lock returned has no effect. A nil
// ctx panics.
//
// On nil the lock is held, on the file that the handle's path names now. If ctx
// ends first, even together with the grant, the error is a [*BusyError] that
// matches ctx.Err() and [context.Cause](ctx); a ctx that is done on entry always
// fails so, without any I/O. Any other failure is an [*fs.PathError] with the
// operation and the path; it matches [errors.ErrUnsupported] where the file system
// or platform cannot lock, and [fs.ErrClosed] after Close. On any error the handle
// is as it was before, and no lock, goroutine, thread or descriptor of the call
// remains; a file that Lock created may.
//
// If the handle is locked, by this or another goroutine, Lock waits for its
// Unlock. Goroutines that wait get the lock in the order they came once they have
// waited 1 ms; before that, running goroutines may overtake them. An exclusive
// waiter is not starved by shared ones of its process.
//
// The nth Unlock of a file in a process is synchronized before the return of the
// next Lock of it there, in the terms of the Go memory model.
func (l *Flock) Lock(ctx context.Context) error {
	if l.unmade() {
		return errUnmade("lock")
	}
	a := newAttempt(ctx)
	return l.lock(&a)
}

// TryLock locks the handle's file in the handle's mode if that needs no waiting.
//
// On nil the lock is held as after Lock. If another holder has it, or a goroutine
// of this process is due to get it, the error is a [*BusyError] that matches
// [ErrLocked]. Any other error is as that of [Flock.Lock]. TryLock waits for nobody, but
// opening a file on a server or daemon that does not answer takes as long as that.
func (l *Flock) TryLock() error {
	if l.unmade() {
		return errUnmade("lock")
	}
	a := newTry()
	return l.lock(&a)
}

// File returns the locked file, for reading and writing under the lock, or nil
// where the handle has no file open: before the first Lock and after Close. While
// another goroutine is in the middle of Lock or Unlock it may be nil too. It is the
// same file until a Lock finds that the path names another one. Close of the handle
// closes it, not the caller, unless it came from LockFile.
func (l *Flock) File() *os.File {
	if l.unmade() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.borrowed {
		return l.desc.Made()
	}
	switch l.state {
	case locking: // which may be opening it
		return nil
	case unlocking, converting: // which reads it
		return l.desc.Made()
	}
	return l.makeFile()
}

// Name returns the path that the handle was made with, or the name of the file
// given to LockFile.
func (l *Flock) Name() string {
	switch {
	case l.unmade():
		return ""
	case l.given != nil:
		return *l.given
	}
	return l.at
}

// String returns the path, the mode and the state, for logs, such as
// "jobs.lock (exclusive, locked)".
func (l *Flock) String() string {
	if l.unmade() {
		return "(no handle)"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	is := "not locked"
	switch {
	case l.state == locked || l.state == converting:
		is = "locked"
	case l.closing:
		is = "closed"
	}
	return fmt.Sprintf("%s (%v, %s)", l.Name(), Mode(l.mode), is)
}

// Mode returns the mode in which the handle is locked, or will be by its next
// Lock: that of its Options until Convert changes it.
func (l *Flock) Mode() Mode {
	if l.unmade() {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return Mode(l.mode)
}

// Locked reports whether the handle holds the lock. By the time it returns this
// may have changed, unless only the caller's goroutine uses the handle.
func (l *Flock) Locked() bool {
	if l.unmade() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == locked || l.state == converting
}
