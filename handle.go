package flockctx

import (
	"context"
	"io/fs"
	"os"
	"runtime"
	"sync"
)

type state uint8

const (
	unlocked state = iota
	locking
	locked
	unlocking
	converting
)

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

// beginWait makes in the way for Close to end the wait in the kernel that begins.
func (l *Flock) beginWait(in *interrupt) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return fs.ErrClosed
	}
	l.intr = in
	return nil
}

// endWait ends that, and says who interrupted the wait where err is errInterrupted.
func (l *Flock) endWait(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.intr = nil
	switch {
	case err != errInterrupted:
		return err
	case l.closing:
		return fs.ErrClosed
	}
	return errEnded
}

// reopenDoor undoes shut. l.mu is held. Without a shut, l.closed stays: goroutines
// may wait on it.
func (l *Flock) reopenDoor() {
	if l.closing {
		l.closing, l.closed = false, nil
	}
}

// closedFor returns a channel that Close closes, or nil where it cannot be called.
func (l *Flock) closedFor(a *attempt) <-chan struct{} {
	if a.alone {
		return nil
	}
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

func (l *Flock) isClosing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing
}

// settle waits while another goroutine is in the middle of a change. l.mu is held.
func (l *Flock) settle() {
	for l.state == unlocking || l.state == converting || l.state == locking && l.closing {
		l.awaitChange()
	}
}

// awaitChange waits for setState. l.mu is held, but not meanwhile.
func (l *Flock) awaitChange() {
	if l.changed == nil {
		l.changed = sync.NewCond(&l.mu)
	}
	l.changed.Wait()
}

// setState ends such a change. l.mu is held.
func (l *Flock) setState(s state) {
	l.state = s
	l.dropClosed()
	if l.changed != nil {
		l.changed.Broadcast()
	}
}

// dropClosed drops l.closed if nobody waits on it, neither for the handle nor in a
// change of its state: a channel that was made in a testing/synctest bubble must not be
// touched by those who use the handle outside. l.mu is held.
func (l *Flock) dropClosed() {
	if l.closed != nil && (l.state == locked || l.state == unlocked) && (l.turn == nil || l.turn.head == nil) {
		l.closed = nil
	}
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
	err := l.turn.enter(ctx, l.closedChanLocked(), Exclusive)
	if err != nil {
		l.mu.Lock()
		l.dropClosed()
		l.mu.Unlock()
	}
	return err
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

// makeFile returns the handle's os.File, which it makes if there is a descriptor
// but no os.File yet. l.mu is held, and no other goroutine owns l.desc.
func (l *Flock) makeFile() *os.File {
	if l.desc.file == nil && l.q != nil {
		l.desc.file = sysFile(l.desc.fd, l.path)
		if l.guard != nil {
			l.protect()
		}
	}
	return l.desc.file
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
