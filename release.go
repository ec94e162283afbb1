package flockctx

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/sys"
)

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
	if l.unmade() {
		return errUnmade("unlock")
	}
	l.mu.Lock()
	l.settle()
	switch {
	case l.closing:
		l.mu.Unlock()
		return pathError("unlock", l.Name(), fs.ErrClosed)
	case l.state != locked:
		l.mu.Unlock()
		return pathError("unlock", l.Name(), ErrNotLocked)
	}
	l.state = unlocking
	l.mu.Unlock()

	err := l.unlockKernel()
	gone := err == nil || errors.Is(err, fs.ErrClosed)
	var handed bool
	var panicked any
	if gone {
		panicked = l.released("unlock", Mode(l.mode), err)
		handed = l.leaveGate(Mode(l.mode))
	}
	l.mu.Lock()
	if gone {
		if l.guard == nil {
			l.protect()
		}
		l.setState(unlocked)
		if l.passHandle() {
			handed = true
		}
	} else {
		l.setState(locked)
	}
	l.mu.Unlock()
	yieldAfter(handed)
	if panicked != nil {
		panic(panicked)
	}
	if err != nil {
		return pathError("unlock", l.Name(), err)
	}
	return nil
}

// Close releases the lock if the handle holds it, closes the file unless it came
// from LockFile, and ends the handle: every later call, and every call that waits
// on the handle, fails with [fs.ErrClosed]. With Options.Remove it removes the file
// first, if the path still names it; see there.
//
// On nil the lock is gone for everyone, also where a child process inherited the
// descriptor; but not if the caller closed File, with which the lock goes only if no
// child has it. On an error the handle is closed and the lock released all the same:
// an [*fs.PathError] with the operation "remove" (the file is still there), "unlock"
// (the lock goes with the last descriptor of the open file: at once, unless a child or
// the caller of LockFile has one), or "close" (close(2) failed: what was written through
// File may not have reached the disk), or several of them joined. A second Close returns
// an error that matches [fs.ErrClosed].
func (l *Flock) Close() error {
	if l.unmade() {
		return errUnmade("close")
	}
	return l.close(l.opts.Remove && !l.borrowed)
}

func (l *Flock) close(remove bool) error {
	l.mu.Lock()
	// Whoever unlocks may fail, and the lock be held after all; whoever closes is
	// waited for.
	for l.state == unlocking || l.closing && l.state != unlocked {
		l.awaitChange()
	}
	if l.closing {
		l.mu.Unlock()
		return pathError("close", l.Name(), fs.ErrClosed)
	}
	if l.state == locking || l.state == converting {
		l.shut() // nothing begins from now on, and what is under way ends
		l.settle()
	}
	var removed, unlockErr error
	var panicked any
	if l.state == locked {
		l.state = unlocking
		l.mu.Unlock()
		if remove {
			removed = l.remove()
		}
		if unlockErr = l.unlockKernel(); unlockErr == fs.ErrClosed {
			unlockErr = nil
		}
		panicked = l.released("close", Mode(l.mode), cmp.Or(removed, unlockErr))
		yieldAfter(l.leaveGate(Mode(l.mode)))
		l.mu.Lock()
		l.setState(unlocked)
	}
	l.shut()
	l.unprotect()
	q, d := l.q, l.desc
	l.q, l.desc = nil, sys.Descriptor{}
	l.mu.Unlock()
	if q != nil {
		q.lock()
		q.unref()
		q.unlock()
	}
	var err error
	if fd, bare := d.Bare(); bare {
		err = sys.Close(fd)
	} else if d.IsOpen() && !l.borrowed {
		if err = d.Close(); errors.Is(err, fs.ErrClosed) {
			err = nil
		}
	}
	if panicked != nil {
		panic(panicked)
	}
	if removed == nil && unlockErr == nil && err == nil {
		return nil
	}
	return l.closeFailed(removed, unlockErr, err)
}

func (l *Flock) closeFailed(remove, unlock, closing error) error {
	var errs []error
	for _, e := range []struct {
		op  string
		err error
	}{{"remove", remove}, {"unlock", unlock}, {"close", closing}} {
		if e.err != nil {
			errs = append(errs, pathError(e.op, l.Name(), e.err))
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// The way back. Each of these lets go of one thing that acquire took.

// unlockKernel gives the lock back to the kernel.
func (l *Flock) unlockKernel() error {
	l.q.publish()
	if fd, bare := l.desc.Bare(); bare {
		return sys.Lock(fd, l.request(sys.Unlock, Exclusive))
	}
	return l.desc.Lock(l.request(sys.Unlock, Exclusive))
}

// leaveGate takes l, which does not hold the lock any more, off its queue's holders, and
// lets the next goroutine inside. It reports whether there was one.
func (l *Flock) leaveGate(m Mode) (handed bool) {
	q := l.q
	q.lock()
	q.removeHolder(l)
	handed = q.gate.Leave(gate.Mode(m))
	q.unlock()
	return handed
}

// closeFile closes the file of an unlocked handle if all is set, and otherwise keeps it
// for the next Lock. One from LockFile stays the caller's; a handle on it that never was
// locked has nothing to keep.
func (l *Flock) closeFile(all bool) {
	if !all && !(l.borrowed && l.guard == nil) {
		return
	}
	if q := l.q; q != nil {
		q.lock()
		q.unref()
		q.unlock()
	}
	l.mu.Lock()
	l.q = nil
	l.unprotect()
	d := l.desc
	if !l.borrowed {
		l.desc = sys.Descriptor{}
	}
	l.mu.Unlock()
	if !l.borrowed {
		d.Close()
	}
}

// remove removes the file if the path still names it. A shared lock is made exclusive
// first, since another holder would go on with a file that is gone; where there is one,
// that is left to remove the file. The lock is held as before, or lost.
func (l *Flock) remove() error {
	// Where the caller closed File the lock went with it, and others work on the
	// file by now.
	if l.desc.CheckOpen() != nil {
		return nil
	}
	if l.mode == gate.Reader {
		r := l.request(sys.Try, Exclusive)
		r.Convert = true
		if err := l.desc.Lock(r); err == errBusy {
			return nil
		} else if err != nil {
			return err
		}
	}
	name, err := l.ownName()
	if err != nil || name == "" {
		return err
	}
	l.q.publish() // the successor can be locked from now on
	if l.opts.Root != nil {
		err = l.opts.Root.Remove(name)
	} else {
		err = os.Remove(name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ownName returns the name under which the locked file can be removed, or "" where the
// path names another one or none: behind a symbolic link it is that of the file. What
// would be left of a link that is removed is the file, which others lock by its own
// name.
func (l *Flock) ownName() (name string, err error) {
	name = l.at
	var fi fs.FileInfo
	if root := l.opts.Root; root != nil {
		fi, err = root.Lstat(name)
	} else if fi, err = os.Lstat(name); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		if name, err = filepath.EvalSymlinks(name); err == nil {
			fi, err = os.Lstat(name)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case fi.IsDir():
		return "", syscall.EISDIR
	case fi.Mode()&fs.ModeSymlink != 0: // in a Root, or made one this very moment
		return "", errors.New("is a symbolic link")
	}
	if err = l.verify(name); err == errStale {
		return "", nil
	}
	return name, err
}
