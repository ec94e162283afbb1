package flockctx

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
)

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
// [*fs.PathError] else; but after Close, or where Close interrupts Convert, the error
// matches [fs.ErrClosed] and nothing is held. Two goroutines of a process that each hold the file shared
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

// upgrade makes a shared lock exclusive.
func (l *Flock) upgrade(a *attempt) error {
	q := l.q
	q.mu.Lock()
	if q.readers > 1 {
		a.waits()
	}
	if err := q.beAlone(a.ctx, l.closedFor(a)); err != nil {
		return err
	}
	l.unlend()
	err := l.exchange(a, Exclusive)
	if err != nil {
		if !errors.Is(err, ErrNotLocked) {
			l.relend()
		}
		q.mu.Lock()
		q.share()
		q.mu.Unlock()
	}
	return err
}

// downgrade makes an exclusive lock shared.
func (l *Flock) downgrade(a *attempt) error {
	q := l.q
	q.publish()
	err := l.exchange(a, Shared)
	if err == nil {
		l.relend()
		q.mu.Lock()
		q.share()
		q.mu.Unlock()
	}
	return err
}

// exchange asks the kernel to replace the held lock by one in mode m, alone in this
// process. On an error the old lock is still held, or lost and a *lostError returned.
func (l *Flock) exchange(a *attempt, m Mode) error {
	r := l.request(opTry)
	r.mode, r.convert = m, true
	err := l.desc.lock(r)
	if err == errBusy {
		a.waits()
		q := l.q
		q.mu.Lock()
		q.kernel = true
		q.mu.Unlock()
		err = l.await(a, m)
		q.mu.Lock()
		q.kernel = false
		q.mu.Unlock()
	}
	if l.opts.Mechanism == OFD {
		if err == nil {
			l.q.observe(false)
		}
		return err
	}
	// flock(2): "converting a lock is not guaranteed to be atomic: the existing
	// lock is first removed, and then a new lock is established."
	if err != nil {
		r.mode = 1 - m
		if back := l.desc.lock(r); back != nil {
			return &lostError{err}
		}
	}
	l.q.observe(false)
	if verr := l.verify(l.path); verr != nil {
		r.op = opUnlock
		l.desc.lock(r)
		if verr == errStale {
			verr = errReplaced
		}
		return &lostError{verr}
	}
	return err
}

var errReplaced = errors.New("the path names another file by now")
