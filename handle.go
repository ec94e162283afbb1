package flockctx

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/interrupt"
	"github.com/flockctx/flockctx/internal/sys"
)

type state uint8

const (
	unlocked state = iota
	locking
	locked
	unlocking
	converting
)

// fix makes the relative path mean what it means now, whatever becomes of the working
// directory.
func (l *Flock) fix(path string) {
	var err error
	l.given = &path
	if runtime.GOOS == "windows" {
		l.at, err = filepath.Abs(path)
	} else {
		// Not filepath.Abs, which takes out "..": behind a symbolic link that is
		// another path.
		l.at, err = os.Getwd()
		l.at += string(filepath.Separator) + path
	}
	if err != nil {
		l.opts = &settings{Options: l.opts.Options, invalid: err}
	}
}

// others is what goroutines need that wait for each other on one handle. The handle's
// mutex guards it.
type others struct {
	turn    gate.Gate       // in place of Flock.taken
	closed  chan struct{}   // closed by Close
	changed sync.Cond       // the state has changed
	call    *interrupt.Call // the wait in the kernel that is under way, for Close to end
}

// withOthers returns l.others, which it makes if there is none yet. l.mu is held.
func (l *Flock) withOthers() *others {
	if l.others == nil {
		o := &others{closed: make(chan struct{}), changed: sync.Cond{L: &l.mu}}
		o.turn.Init(&l.mu, 0)
		if l.taken {
			o.turn.TryEnter(gate.Writer)
		}
		if l.closing {
			close(o.closed)
		}
		l.others = o
	}
	return l.others
}

// claim takes the handle for a goroutine if that needs no waiting. l.mu is held.
func (l *Flock) claim() bool {
	if l.others != nil {
		return l.others.turn.TryEnter(gate.Writer)
	}
	if l.taken {
		return false
	}
	l.taken = true
	return true
}

// claimSlowly is claim where that may need waiting. l.mu is held, and released on an
// error.
func (l *Flock) claimSlowly(a *attempt) error {
	if !l.closing {
		if a.try {
			l.mu.Unlock()
			return errBusy
		}
		l.mu.Unlock()
		a.waits()
		l.mu.Lock()
	}
	if !l.closing {
		o := l.withOthers()
		a.gate = &o.turn
		if err := o.turn.Enter(a.done, o.closed, gate.Writer, nil); err != nil {
			return err
		}
		l.mu.Lock()
	}
	if l.closing {
		l.mu.Unlock()
		return fs.ErrClosed
	}
	return nil
}

// passHandle gives the handle to the next goroutine. l.mu is held. It reports whether
// there was one.
func (l *Flock) passHandle() (handed bool) {
	if l.others != nil {
		return l.others.turn.Leave(gate.Writer)
	}
	l.taken = false
	return false
}

// settle waits while another goroutine is in the middle of a change. l.mu is held.
func (l *Flock) settle() {
	for l.state == unlocking || l.state == converting || l.state == locking && l.closing {
		l.awaitChange()
	}
}

// awaitChange waits for setState. l.mu is held, but not meanwhile.
func (l *Flock) awaitChange() { l.withOthers().changed.Wait() }

// setState ends such a change. l.mu is held.
func (l *Flock) setState(s state) {
	l.state = s
	if l.others != nil {
		l.others.changed.Broadcast()
	}
}

// shut keeps goroutines from using the handle and throws out those that wait on
// it. l.mu is held, and released for a moment where one of them is in the kernel.
func (l *Flock) shut() {
	if l.closing {
		return
	}
	l.closing = true
	if l.others == nil {
		return
	}
	close(l.others.closed)
	if call := l.others.call; call != nil {
		l.mu.Unlock()
		call.Fire()
		l.mu.Lock()
	}
}

// closedFor returns a channel that Close closes, or nil where it cannot be called.
func (l *Flock) closedFor(a *attempt) <-chan struct{} {
	if a.alone {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.withOthers().closed
}

func (l *Flock) isClosing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing
}

// beginWait makes call the way for Close to end the wait in the kernel that begins.
func (l *Flock) beginWait(a *attempt, call *interrupt.Call) error {
	if a.alone {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return fs.ErrClosed
	}
	l.withOthers().call = call
	return nil
}

// endWait ends that, and reports whether Close has begun.
func (l *Flock) endWait(a *attempt) (closing bool) {
	if a.alone {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.others.call = nil
	return l.closing
}

// makeFile returns the handle's os.File, which it makes if there is a descriptor
// but no os.File yet. l.mu is held, and no other goroutine owns l.desc.
func (l *Flock) makeFile() *os.File {
	if _, bare := l.desc.Bare(); bare {
		l.desc.File(l.Name())
		if l.guard != nil {
			l.protect()
		}
	}
	return l.desc.File(l.Name())
}

// orphan is what remains of an unlocked handle that the program forgot. An os.File
// closes itself.
type orphan struct {
	q    *queue
	fd   uintptr
	bare bool // fd belongs to no os.File
}

// protect has what an unlocked handle has open given back when the program forgets the
// handle. l.mu is held.
func (l *Flock) protect() {
	l.unprotect()
	o := orphan{q: l.q}
	o.fd, o.bare = l.desc.Bare()
	guard := runtime.AddCleanup(l, func(o orphan) {
		o.q.lock()
		o.q.unref()
		o.q.unlock()
		if o.bare {
			sys.Close(o.fd)
		}
	}, o)
	l.guard = &guard
}

func (l *Flock) unprotect() {
	if l.guard != nil {
		l.guard.Stop()
		l.guard = nil
	}
}
