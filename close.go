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
// first, if the path still names it; of a Shared lock the last holder does, but
// where the last ones close at the same moment, perhaps nobody.
//
// On nil the lock is gone for everyone, also where a child process inherited the
// descriptor; but not if the caller closed File, with which the lock goes only if no
// child has it. On an [*fs.PathError] with the operation "remove" or "unlock" the
// lock is still held and Close may be called again; if it matches [ErrNotLocked], or
// the operation is "close" (close(2) failed: what was written through File may not
// have reached the disk), the lock is gone and the handle ended all the same.
func (l *Flock) Close() error { return l.close(l.opts.Remove && !l.borrowed) }

// abandon is Close that does not fail for a file that cannot be removed.
func (l *Flock) abandon() { _ = l.close(false) }

func (l *Flock) close(remove bool) error {
	l.mu.Lock()
	// Whoever unlocks, or closes already, may fail, and the lock be held after all.
	for l.state == unlocking || l.closing && l.state != unlocked {
		l.awaitChange()
	}
	if l.closing {
		l.mu.Unlock()
		return pathError("close", l.path, fs.ErrClosed)
	}
	if l.state == locking || l.state == converting {
		l.shut() // nothing begins from now on, and what is under way ends
		l.settle()
	}
	var gone error // why the lock was lost
	open := l.q != nil || l.desc.file != nil
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
		if err != nil {
			if errors.Is(err, ErrNotLocked) {
				gone = err
			} else if !errors.Is(err, fs.ErrClosed) {
				l.mu.Lock()
				l.reopenDoor()
				l.setState(locked)
				l.mu.Unlock()
				return err
			}
		}
		yieldAfter(l.leave(true))
		l.mu.Lock()
		l.setState(unlocked)
	}
	l.shut()
	l.unguard()
	q, d := l.q, l.desc
	l.q, l.desc = nil, descriptor{}
	l.mu.Unlock()
	if q != nil {
		q.mu.Lock()
		q.quit()
		q.mu.Unlock()
	}
	if l.borrowed || !open { // not open: the zero descriptor is number 0, not ours
		return gone
	}
	var err error
	if d.file == nil {
		err = sysClose(d.fd)
	} else {
		err = d.file.Close()
	}
	if gone != nil {
		return gone
	}
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		return pathError("close", l.path, err)
	}
	return nil
}

// remove removes the file if the path still names it. A shared lock is made
// exclusive first, since another holder would go on with a file that is gone; where
// there is one, that is left to remove the file. On an error the lock is held as
// before, or is lost and the error matches ErrNotLocked.
func (l *Flock) remove() error {
	// Where the caller closed File the lock went with it, and others work on the
	// file by now.
	if err := l.desc.control(func(uintptr) error { return nil }); err != nil {
		return err
	}
	if l.mode == Shared {
		r := l.request(opTry)
		r.convert = true
		if err := l.desc.lock(r); err == errBusy {
			return nil
		} else if err != nil {
			return l.removeFailed(err)
		}
	}
	err := l.verify(l.path)
	if err == nil {
		l.q.publish() // the successor can be locked from now on
		if err = os.Remove(l.path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil || err == errStale {
		return nil
	}
	return l.removeFailed(err)
}

// removeFailed makes the lock what it was, as far as that can be done, after err kept
// the file from being removed.
func (l *Flock) removeFailed(err error) error {
	if l.mode == Shared {
		r := l.request(opTry)
		r.mode, r.convert = Shared, true
		if l.desc.lock(r) != nil {
			err = &lostError{err}
		}
	}
	return pathError("remove", l.path, err)
}
