package flockctx

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/sys"
)

// Convert changes the mode of a held lock to m.
//
// From exclusive to shared it hardly ever waits. From shared to exclusive it waits,
// until ctx is done, for the other shared holders to unlock. With OFD the kernel
// converts in one step. With BSD it releases the lock and takes it anew, and may
// let others in between (see flock(2)): what was read under the old lock may have
// changed. That never happens for handles of this process alone.
//
// On nil the lock is held in mode m. On an error that matches [ErrNotLocked] nothing is
// held: there was no lock, or, with BSD only, it was lost. After Close, or where Close
// interrupts Convert, the error matches [fs.ErrClosed] and nothing is held either. On any
// other error the lock is held in its old mode. The error is a [*BusyError] where ctx
// ended, an [*fs.PathError] else.
//
// Two goroutines of a process that each hold the file shared and want it exclusive would
// wait for each other: the second one gets an error at once. Two processes do wait for
// each other, until a ctx ends.
func (l *Flock) Convert(ctx context.Context, m Mode) error {
	if l.unmade() {
		return errUnmade("convert")
	}
	a := newAttempt(ctx)
	ended := ctx.Err() != nil
	a.traced(l, "convert")
	a.trace.mode = m
	if err := l.convert(&a, m, ended); err != nil {
		return l.failure("convert", m, &a, err)
	}
	return nil
}

// TryConvert changes the mode of a held lock to m if that needs no waiting.
//
// On nil the lock is held in mode m. If other holders are in the way, the error is a
// [*BusyError] that matches [ErrLocked], and the lock is held in its old mode; but with
// BSD somebody else can have been faster to take the lock that flock(2) dropped for a
// moment: then it is lost, and the error matches [ErrNotLocked] as well. Any other error
// is as that of [Flock.Convert].
func (l *Flock) TryConvert(m Mode) error {
	if l.unmade() {
		return errUnmade("convert")
	}
	a := newTry()
	a.traced(l, "convert")
	a.trace.mode = m
	if err := l.convert(&a, m, false); err != nil {
		return l.failure("convert", m, &a, err)
	}
	return nil
}

func (l *Flock) convert(a *attempt, m Mode, ended bool) error {
	if m != Exclusive && m != Shared {
		return syscall.EINVAL
	}
	l.mu.Lock()
	l.settle()
	switch {
	case l.closing:
		l.mu.Unlock()
		return fs.ErrClosed
	case l.state != locked:
		l.mu.Unlock()
		return ErrNotLocked
	case ended:
		l.mu.Unlock()
		return errEnded
	case m == Mode(l.mode):
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
		if p := l.released("convert", Mode(l.mode), err); p != nil && a.panicked == nil {
			a.panicked = p
		}
		yieldAfter(l.leaveGate(Mode(l.mode)))
	}
	l.mu.Lock()
	if lost {
		if l.guard == nil {
			l.protect()
		}
		l.setState(unlocked)
		l.passHandle()
	} else {
		if err == nil {
			l.mode = gate.Mode(m)
		}
		l.setState(locked)
	}
	l.mu.Unlock()
	if err == nil && a.panicked != nil {
		panic(a.panicked)
	}
	return err
}

// upgrade makes a shared lock exclusive.
func (l *Flock) upgrade(a *attempt) error {
	q := l.q
	closed := l.closedFor(a)
	q.lock()
	if q.gate.Readers() > 1 {
		if a.try {
			q.unlock()
			return errBusy
		}
		q.unlock()
		a.waits()
		q.lock()
		q.sendOut()
	}
	if err := q.gate.BeAlone(a.done, closed); err != nil {
		return err
	}
	err := l.exchange(a, Exclusive)
	if err == nil {
		a.tellConverted()
		return nil
	}
	q.lock()
	q.gate.Share()
	q.unlock()
	return err
}

// downgrade makes an exclusive lock shared.
func (l *Flock) downgrade(a *attempt) error {
	q := l.q
	q.publish()
	err := l.exchange(a, Shared)
	if err == nil {
		a.tellConverted()
		q.lock()
		q.gate.Share()
		q.unlock()
	}
	return err
}

// exchange asks the kernel to replace the held lock by one in mode m, alone in this
// process. On an error the old lock is still held, or lost and a *lostError returned.
func (l *Flock) exchange(a *attempt, m Mode) error {
	r := l.request(sys.Try, m)
	r.Convert = true
	err := l.desc.Lock(r)
	if err == errBusy && !a.try {
		a.waits()
		q := l.q
		q.lock()
		q.gate.Close()
		q.unlock()
		err = l.await(a, m, false)
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
		r.Shared = !r.Shared
		if back := l.desc.Lock(r); back != nil {
			return &lostError{err}
		}
	}
	l.q.observe(false)
	// Where the path cannot be looked at any more, the lock is still one.
	if l.verify(l.at) == errStale {
		l.desc.Lock(l.request(sys.Unlock, m))
		return &lostError{errReplaced}
	}
	return err
}

var errReplaced = errors.New("the path names another file by now")
