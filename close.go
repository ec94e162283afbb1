package flockctx

import (
	"errors"
	"io/fs"
	"os"
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

// release gives back the held lock. The caller then calls leave.
func (l *Flock) release() error {
	if err := l.give(l.mode); err != nil {
		return pathError("unlock", l.path, err)
	}
	return nil
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

// remove removes the file if the path still names it. A shared lock is made
// exclusive first, since another holder would go on with a file that is gone; if
// that fails, the other holder is left to remove it.
func (l *Flock) remove() error {
	// Where the caller closed File the lock went with it, and others work on the
	// file by now.
	if err := l.desc.control(func(uintptr) error { return nil }); err != nil {
		return err
	}
	if l.mode == Shared {
		r := l.request(opTry)
		r.convert = true
		if err := l.desc.lock(r); err != nil {
			return nil
		}
	}
	err := l.verify()
	if err == nil {
		l.q.publish() // the successor can be locked from now on
		if err = os.Remove(l.path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil || err == errStale {
		return nil
	}
	if l.mode == Shared {
		r := l.request(opTry)
		r.mode, r.convert = Shared, true
		l.desc.lock(r)
	}
	return pathError("remove", l.path, err)
}
