package flockctx

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"syscall"
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

	mu      sync.Mutex    // guards all from fresh to guard; no system call is made under it
	turn    *gate         // in place of taken, from the first time that a goroutine waits for the handle
	closed  chan struct{} // closed by Close; made by the first who waits
	changed *sync.Cond    // state has changed; made by the first who waits
	intr    *interrupt    // how to end the wait in the kernel that is under way

	desc  descriptor
	q     *queue // nil while no file is open
	guard *guard // set from the first Unlock until the file is closed

	nextHolder, prevHolder *Flock // q.holders; guarded by q.mu
}

type state uint8

const (
	unlocked state = iota
	locking
	locked
	unlocking
	converting
)

// errBusy: a try-lock found the lock taken. errEnded: ctx is done. errInterrupted:
// a system call was interrupted. errStale: the path names another file by now.
// None of them leaves the package.
var (
	errBusy        = errors.New("busy")
	errEnded       = errors.New("ended")
	errInterrupted = errors.New("interrupted")
	errStale       = errors.New("stale")
	errUpgrade     = errors.New("another goroutine holds the lock shared and waits to make it exclusive: unlock one of the two")
)

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
// releases it, unless a child process inherited f or a duplicate of f is open.
func LockFile(ctx context.Context, f *os.File, opts *Options) (*Flock, error) {
	l, err := borrow(f, opts)
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
	l, err := borrow(f, opts)
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
	l, err := borrow(f, opts)
	if err == nil {
		err = l.opts.invalid
	}
	if err == nil {
		err = l.desc.lock(l.request(opUnlock))
	}
	if err != nil {
		return pathError("unlock", f.Name(), err)
	}
	return nil
}

func borrow(f *os.File, opts *Options) (*Flock, error) {
	if f == nil {
		return nil, pathError("lock", "", os.ErrInvalid)
	}
	l := New(f.Name(), opts)
	l.borrowed = true
	l.desc.file = f
	var err error
	if l.desc.id, err = l.desc.identify(); err != nil {
		return nil, pathError("lock", l.path, err)
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

// Unlock releases the lock and keeps the file open for the next Lock. Any
// goroutine may call it.
//
// On nil the lock is gone for everyone, also where a child process inherited the
// descriptor. Without a lock the error matches [ErrNotLocked], after Close
// [fs.ErrClosed]. On any other error, an [*fs.PathError], the lock is still held
// and Unlock may be called again. Flush buffers, such as a [bufio.Writer] on File,
// before Unlock: others read the file from then on.
//
// If the caller closed File, the lock went with it: Unlock then returns an error
// that matches fs.ErrClosed, and the handle is unlocked.
func (l *Flock) Unlock() error {
	l.mu.Lock()
	l.settle()
	switch {
	case l.closing:
		l.mu.Unlock()
		return pathError("unlock", l.path, fs.ErrClosed)
	case l.state != locked:
		l.mu.Unlock()
		return pathError("unlock", l.path, ErrNotLocked)
	}
	l.state = unlocking
	l.mu.Unlock()

	err := l.release()
	gone := err == nil || errors.Is(err, fs.ErrClosed)
	var handed bool
	if gone {
		handed = l.leave(false)
	}
	l.mu.Lock()
	if gone {
		if l.guard == nil {
			l.protect()
		}
		l.setState(unlocked)
		if l.pass() {
			handed = true
		}
	} else {
		l.setState(locked)
	}
	l.mu.Unlock()
	yieldAfter(handed)
	return err
}

// Close releases the lock if the handle holds it, closes the file unless it came
// from LockFile, and ends the handle: every later call, and every call that waits
// on the handle, fails with [fs.ErrClosed]. With Options.Remove it removes the file
// first, if the path still names it.
//
// On nil the lock is gone for everyone, also where a child process inherited the
// descriptor. On an error other than fs.ErrClosed, an [*fs.PathError], the lock is
// still held, the file is still there, and Close may be called again.
func (l *Flock) Close() error { return l.close(l.opts.Remove && !l.borrowed) }

// abandon is Close that does not fail for a file that cannot be removed.
func (l *Flock) abandon() { _ = l.close(false) }

func (l *Flock) close(remove bool) error {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return pathError("close", l.path, fs.ErrClosed)
	}
	mine := l.state == locking || l.state == converting
	if mine {
		l.shut()
	}
	l.settle()
	if l.closing && !mine { // another Close was faster
		l.mu.Unlock()
		return pathError("close", l.path, fs.ErrClosed)
	}
	if l.state == locked {
		l.state = unlocking
		l.mu.Unlock()
		var err error
		if remove {
			err = l.remove()
		}
		if err == nil {
			if l.desc.file == nil {
				l.q.publish()
				err = sysLock(l.desc.fd, l.request(opUnlock))
			} else {
				err = l.give(l.mode)
			}
			if err != nil {
				err = pathError("unlock", l.path, err)
			}
		}
		if err != nil && !errors.Is(err, fs.ErrClosed) {
			l.mu.Lock()
			l.reopenDoor()
			l.setState(locked)
			l.mu.Unlock()
			return err
		}
		yieldAfter(l.leave(true))
		l.mu.Lock()
		l.setState(unlocked)
	} else if l.q != nil {
		l.q.mu.Lock()
		l.q.quit()
		l.q.mu.Unlock()
		l.q = nil
	} else if l.desc.file == nil {
		// Nothing is open: the zero descriptor is number 0, which is not ours.
		l.shut()
		l.mu.Unlock()
		return nil
	}
	l.shut()
	l.unguard()
	d := l.desc
	l.desc = descriptor{}
	l.mu.Unlock()
	if l.borrowed {
		return nil
	}
	var err error
	if d.file == nil {
		err = sysClose(d.fd)
	} else {
		err = d.file.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		return pathError("close", l.path, err)
	}
	return nil
}

// shut keeps goroutines from using the handle and throws out those that wait on
// it. l.mu is held, and released for a moment where one of them is in the kernel.
func (l *Flock) shut() {
	if l.closing {
		return
	}
	l.closing = true
	if l.closed != nil {
		close(l.closed)
	}
	if in := l.intr; in != nil {
		l.mu.Unlock()
		in.fire()
		l.mu.Lock()
	}
}

// reopenDoor undoes shut. l.mu is held. Without a shut, l.closed stays: goroutines
// wait on it.
func (l *Flock) reopenDoor() {
	if l.closing {
		l.closing, l.closed = false, nil
	}
}

// closedChan returns a channel that Close closes.
func (l *Flock) closedChan() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closedChanLocked()
}

func (l *Flock) closedChanLocked() <-chan struct{} {
	if l.closed == nil {
		l.closed = make(chan struct{})
		if l.closing {
			close(l.closed)
		}
	}
	return l.closed
}

// settle waits while another goroutine is in the middle of a change. l.mu is held.
func (l *Flock) settle() {
	for l.state == unlocking || l.state == converting || l.state == locking && l.closing {
		if l.changed == nil {
			l.changed = sync.NewCond(&l.mu)
		}
		l.changed.Wait()
	}
}

// setState ends such a change. l.mu is held.
func (l *Flock) setState(s state) {
	l.state = s
	if l.changed != nil {
		l.changed.Broadcast()
	}
}

// File returns the locked file, for reading and writing under the lock, or nil
// where the handle has no file open: before the first Lock, after Close, and
// without a lock while another goroutine is locking. It is the same file until a
// Lock finds that the path names another one. Close of the handle closes it, not
// the caller, unless it came from LockFile.
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

// makeFile returns the handle's os.File, which it makes if there is a descriptor
// but no os.File yet. l.mu is held, and no other goroutine owns l.desc.
func (l *Flock) makeFile() *os.File {
	if l.desc.file == nil && l.q != nil {
		l.desc.file = l.desc.newFile(l.path)
		if l.guard != nil {
			l.protect()
		}
	}
	return l.desc.file
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

// Convert changes the mode of a held lock to m.
//
// From exclusive to shared it hardly ever waits. From shared to exclusive it waits,
// until ctx is done, for the other shared holders to unlock. With OFD the kernel
// converts in one step. With BSD it releases the lock and takes it anew, and may
// let others in between (see flock(2)): what was read under the old lock may have
// changed. That never happens for handles of this process alone.
//
// On nil the lock is held in mode m. On an error that matches [ErrNotLocked] it is
// lost, and the handle is unlocked: only possible with BSD, or if there was none. On
// any other error it is held in the old mode: a [*BusyError] where ctx ended, an
// [*fs.PathError] else. Two goroutines of a process that each hold the file shared
// and want it exclusive would wait for each other: the second one gets an error
// at once. Two processes do wait for each other, until a ctx ends.
func (l *Flock) Convert(ctx context.Context, m Mode) error {
	if m != Exclusive && m != Shared {
		return pathError("convert", l.path, syscall.EINVAL)
	}
	l.mu.Lock()
	l.settle()
	switch {
	case l.closing:
		l.mu.Unlock()
		return pathError("convert", l.path, fs.ErrClosed)
	case l.state != locked:
		l.mu.Unlock()
		return pathError("convert", l.path, ErrNotLocked)
	}
	a := &attempt{ctx: ctx}
	if ctx.Err() != nil {
		l.mu.Unlock()
		return l.failure("convert", m, a, errEnded)
	}
	if m == l.mode {
		l.mu.Unlock()
		return nil
	}
	l.makeFile() // for the File of goroutines that share the handle, until it ends
	l.state = converting
	l.mu.Unlock()

	var err error
	if m == Exclusive {
		err = l.upgrade(a)
	} else {
		err = l.downgrade(a)
	}
	lost := errors.Is(err, ErrNotLocked)
	if lost {
		yieldAfter(l.leave(false))
	}
	l.mu.Lock()
	if lost {
		if l.guard == nil {
			l.protect()
		}
		l.setState(unlocked)
		l.pass()
	} else {
		if err == nil {
			l.mode = m
		}
		l.setState(locked)
	}
	l.mu.Unlock()
	if err != nil {
		return l.failure("convert", m, a, err)
	}
	return nil
}

// claim takes the handle for a goroutine if that needs no waiting. l.mu is held.
func (l *Flock) claim() bool {
	if l.turn != nil {
		return l.turn.tryEnter(Exclusive)
	}
	if l.taken {
		return false
	}
	l.taken = true
	return true
}

// claimWait waits for the handle. l.mu is held, and released on return.
func (l *Flock) claimWait(ctx context.Context) error {
	if l.turn == nil {
		l.turn = &gate{mu: &l.mu, writer: l.taken}
	}
	return l.turn.enter(ctx, l.closedChanLocked(), Exclusive)
}

// pass gives the handle to the next goroutine. l.mu is held. It reports whether
// there was one.
func (l *Flock) pass() (handed bool) {
	if l.turn != nil {
		return l.turn.leave(Exclusive)
	}
	l.taken = false
	return false
}

// A guard gives back what an unlocked, forgotten handle has open.
type guard struct{ cleanup runtime.Cleanup }

// orphan is what remains of such a handle. An os.File closes itself.
type orphan struct {
	q  *queue
	fd uintptr
	// bare: fd belongs to no os.File
	bare bool
}

// protect sets l.guard for an unlocked handle with an open file. l.mu is held.
func (l *Flock) protect() {
	l.unguard()
	o := orphan{l.q, l.desc.fd, l.desc.file == nil}
	l.guard = &guard{runtime.AddCleanup(l, func(o orphan) {
		o.q.mu.Lock()
		o.q.quit()
		o.q.mu.Unlock()
		if o.bare {
			sysClose(o.fd)
		}
	}, o)}
}

func (l *Flock) unguard() {
	if l.guard != nil {
		l.guard.cleanup.Stop()
		l.guard = nil
	}
}
