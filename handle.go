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

// absolute returns what path means now, whatever becomes of the working directory.
func absolute(path string) (string, error) {
	if filepath.IsAbs(path) || path == "" {
		return path, nil
	}
	if runtime.GOOS == "windows" {
		return filepath.Abs(path)
	}
	// Not filepath.Abs: without "..", the path behind a symbolic link is another one.
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	return dir + string(filepath.Separator) + path, nil
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
	if call := l.call; call != nil {
		l.mu.Unlock()
		call.Fire()
		l.mu.Lock()
	}
}

// beginWait makes call the way for Close to end the wait in the kernel that begins.
func (l *Flock) beginWait(call *interrupt.Call) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return fs.ErrClosed
	}
	l.call = call
	return nil
}

// endWait ends that, and reports whether Close has begun.
func (l *Flock) endWait() (closing bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.call = nil
	return l.closing
}

// closedFor returns a channel that Close closes, or nil where it cannot be called.
func (l *Flock) closedFor(a *attempt) <-chan struct{} {
	if a.alone {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closedChan()
}

// closedChan is closedFor with l.mu held.
func (l *Flock) closedChan() <-chan struct{} {
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
	if l.changed != nil {
		l.changed.Broadcast()
	}
}

// claim takes the handle for a goroutine if that needs no waiting. l.mu is held.
func (l *Flock) claim() bool {
	if l.turn != nil {
		return l.turn.TryEnter(gate.Writer)
	}
	if l.taken {
		return false
	}
	l.taken = true
	return true
}

// claimWait waits for the handle. l.mu is held, and released on return.
func (l *Flock) claimWait(a *attempt) error {
	if l.turn == nil {
		l.turn = new(gate.Gate)
		l.turn.Init(&l.mu, 0)
		if l.taken {
			l.turn.TryEnter(gate.Writer)
		}
	}
	return l.turn.Enter(a.done, l.closedChan(), gate.Writer, nil)
}

// passHandle gives the handle to the next goroutine. l.mu is held. It reports whether
// there was one.
func (l *Flock) passHandle() (handed bool) {
	if l.turn != nil {
		return l.turn.Leave(gate.Writer)
	}
	l.taken = false
	return false
}

// makeFile returns the handle's os.File, which it makes if there is a descriptor
// but no os.File yet. l.mu is held, and no other goroutine owns l.desc.
func (l *Flock) makeFile() *os.File {
	if _, bare := l.desc.Bare(); bare {
		l.desc.File(l.path)
		if l.guarded {
			l.protect()
		}
	}
	return l.desc.File(l.path)
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
	l.guarded = true
	l.guard = runtime.AddCleanup(l, func(o orphan) {
		o.q.lock()
		o.q.unref()
		o.q.unlock()
		if o.bare {
			sys.Close(o.fd)
		}
	}, o)
}

func (l *Flock) unprotect() {
	if l.guarded {
		l.guard.Stop()
		l.guarded = false
	}
}
