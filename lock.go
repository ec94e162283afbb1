package flockctx

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
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
type Flock struct {
	path     string
	opts     *settings // never changed, maybe shared with other handles
	borrowed bool      // the file came from LockFile and is the caller's

	// A goroutine that has set state to locking, unlocking or converting owns
	// desc, q and fresh until it sets it anew.
	fresh   bool // desc was opened for the Lock to come, which closes it where it fails
	state   state
	closing bool // Close has begun: no goroutine may lock any more
	taken   bool // a goroutine has the handle: from the beginning of Lock to the end of Unlock
	mode    Mode

	mu      sync.Mutex    // guards all from fresh to guard; no system call that can wait is made under it
	turn    *gate         // in place of taken, from the first time that a goroutine waits for the handle
	closed  chan struct{} // closed by Close; made by the first who waits, dropped by the last
	changed *sync.Cond    // state has changed; made by the first who waits
	intr    *interrupt    // how to end the wait in the kernel that is under way

	desc  descriptor
	q     *queue // nil while no file is open
	guard *guard // set from the first Unlock until the file is closed

	nextHolder, prevHolder *Flock // q.holders; guarded by q.mu
}

// New returns an unlocked handle for the file that path names. It does no I/O;
// what is wrong with path or opts is reported by Lock. Use it for a lock that is
// taken more than once: it keeps the file open between Unlock and Lock.
func New(path string, opts *Options) *Flock {
	s := opts.settings()
	return &Flock{path: path, opts: s, mode: s.Mode}
}

// Lock locks the file that path names, waiting until ctx is done. It is New
// followed by [Flock.Lock]; see there for what holds when it returns. The lock is
// released by Unlock or Close of the handle.
func Lock(ctx context.Context, path string, opts *Options) (*Flock, error) {
	return lockNew(path, opts, &attempt{ctx: ctx})
}

// TryLock locks the file that path names if that needs no waiting. It is New
// followed by [Flock.TryLock]; see there for what holds when it returns.
func TryLock(path string, opts *Options) (*Flock, error) {
	return lockNew(path, opts, &attempt{ctx: context.Background(), try: true})
}

// LockFile locks the open file f, waiting until ctx is done. It is [Lock] for a
// file that the caller opened, with these differences: f stays the caller's, and
// neither Unlock nor Close of the handle closes it; the lock is on f whatever
// path names it, so nothing is verified after the grant; Flag, Perm and Remove of
// opts have no effect; f may also be a device or a pipe, where the system can lock
// those, as Linux can. Handles on the same open file exclude each other like any
// others; but for byte ranges that overlap without being the same, the second one
// fails with [errors.ErrUnsupported], since the kernel would merge them.
//
// The lock belongs to f's open file description. Closing f while the lock is held
// releases it, unless a child process inherited f or a duplicate of f is open; closing
// it while LockFile waits ends that with [fs.ErrClosed]. f must not be the File of
// another handle, whose lock this one would share. A lock that f has already, taken
// without a handle or inherited, the kernel converts; where the new one is busy,
// flock(2) drops the old one. Duplicates of one description are recognized on Linux
// only, and there not where kcmp(2) is forbidden.
func LockFile(ctx context.Context, f *os.File, opts *Options) (*Flock, error) {
	if f != nil && ctx.Err() != nil {
		l := New(f.Name(), opts)
		return nil, l.failure("lock", l.mode, &attempt{ctx: ctx}, errEnded)
	}
	l, err := borrow("lock", f, opts)
	if err != nil {
		return nil, err
	}
	if err := l.Lock(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// TryLockFile locks the open file f if that needs no waiting: [LockFile] with the
// errors of [TryLock].
func TryLockFile(f *os.File, opts *Options) (*Flock, error) {
	l, err := borrow("lock", f, opts)
	if err != nil {
		return nil, err
	}
	if err := l.TryLock(); err != nil {
		return nil, err
	}
	return l, nil
}

// UnlockFile releases the lock of opts.Mechanism (and of its byte range) that f's
// open file description holds, whoever took it: for a descriptor that was
// inherited with its lock. Where there is no lock it does nothing. A lock that a
// handle of this process holds is released by that handle, not with UnlockFile.
// On an error, an [*fs.PathError], nothing has changed.
func UnlockFile(f *os.File, opts *Options) error {
	l, err := borrow("unlock", f, opts)
	if err != nil {
		return err
	}
	if err = l.opts.invalid; err == nil {
		err = l.desc.lock(l.request(opUnlock))
	}
	if err != nil {
		return pathError("unlock", l.path, err)
	}
	return nil
}

// borrow makes a handle on f, for the operation op.
func borrow(op string, f *os.File, opts *Options) (*Flock, error) {
	if f == nil {
		return nil, pathError(op, "", os.ErrInvalid)
	}
	l := New(f.Name(), opts)
	l.borrowed = true
	l.desc.file = f
	var err error
	if l.desc.id, err = l.desc.identify(); err != nil {
		return nil, pathError(op, l.path, err)
	}
	return l, nil
}

// Do locks the file that path names, calls fn with the handle, and releases the
// lock when fn returns, panics or calls [runtime.Goexit]. ctx governs the wait for
// the lock only. Do returns the error of Lock, in which case fn was not called, or
// fn's error joined with that of the release. fn may Unlock, Lock, Convert and
// Close the handle. Where Remove fails, Do releases the lock all the same.
func Do(ctx context.Context, path string, opts *Options, fn func(*Flock) error) (err error) {
	l, err := Lock(ctx, path, opts)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := l.Close(); cerr != nil && !errors.Is(cerr, fs.ErrClosed) {
			l.abandon()
			err = errors.Join(err, cerr)
		}
	}()
	return fn(l)
}

// Lock locks the handle's file in the handle's mode, waiting until ctx is done.
// ctx governs the wait, not the lock: its end after Lock returned has no effect.
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
	return l.lock(&attempt{ctx: ctx})
}

// TryLock locks the handle's file in the handle's mode if that needs no waiting.
//
// On nil the lock is held as after Lock. If another holder has it, or a goroutine
// of this process is due to get it, the error is a [*BusyError] that matches
// [ErrLocked]. Any other error is as that of Lock.
func (l *Flock) TryLock() error {
	return l.lock(&attempt{ctx: context.Background(), try: true})
}

// File returns the locked file, for reading and writing under the lock, or nil
// where the handle has no file open: before the first Lock and after Close. While
// another goroutine is in the middle of Lock or Unlock it may be nil too. It is the
// same file until a Lock finds that the path names another one. Close of the handle
// closes it, not the caller, unless it came from LockFile.
func (l *Flock) File() *os.File {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.borrowed {
		return l.desc.file
	}
	switch l.state {
	case locking: // which may be opening it
		return nil
	case unlocking, converting: // which reads it
		return l.desc.file
	}
	return l.makeFile()
}

// Name returns the path that the handle was made with, or the name of the file
// given to LockFile.
func (l *Flock) Name() string { return l.path }

// Mode returns the mode in which the handle is locked, or will be by its next
// Lock: that of its Options until Convert changes it.
func (l *Flock) Mode() Mode {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mode
}

// Locked reports whether the handle holds the lock. By the time it returns this
// may have changed, unless only the caller's goroutine uses the handle.
func (l *Flock) Locked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == locked || l.state == converting
}
