//go:build !(mips || mipsle || mips64 || mips64le)

package interrupt

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A Call is one wait in the kernel. The zero value is ready for use.
type Call struct {
	mu    sync.Mutex // guards the rest, and is held while a signal is sent
	fired bool       // somebody wants the thread to leave
	tid   int        // the thread that is in the call, or on its way; 0 before and after
	sent  bool       // a signal was sent to it
	gone  chan struct{}
}

const (
	firstPause = 50 * time.Microsecond
	lastPause  = time.Second
)

// ending counts the calls of Fire that wait for a thread to leave. Those threads take their
// turns on the processors: the more there are, the longer none of them needs another signal,
// and each would have to be handled too.
var ending atomic.Int32

// Fire ends the call and returns when it has ended. One signal may not do: it can
// arrive before the thread is inside the system call, or be lost. So it is sent again,
// ever more rarely; where the system call does not answer, as that of a FUSE daemon
// that is deaf to interrupts, once a second.
func (c *Call) Fire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fired = true
	if c.tid == 0 {
		return
	}
	if c.gone == nil {
		c.gone = make(chan struct{})
	}
	gone := c.gone
	var h hold
	defer h.release()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	bubble := inBubble()
	n := ending.Add(1)
	defer ending.Add(-1)
	for pause := min(time.Duration(n)*firstPause, lastPause); c.tid != 0; pause = min(2*pause, lastPause) {
		// Whoever changed the signal's disposition meanwhile does not stop it.
		if h.arm() {
			send(c.tid)
			c.sent = true
		}
		c.mu.Unlock()
		if bubble {
			ts := unix.NsecToTimespec(int64(min(pause, time.Millisecond)))
			unix.Nanosleep(&ts, nil)
		} else {
			timer.Reset(pause) // not time.Sleep, which an idle process wakes from up to 1 ms late
			select {
			case <-gone:
			case <-timer.C:
			}
		}
		c.mu.Lock()
	}
}

// inBubble reports whether the goroutine is in a testing/synctest bubble, where no timer
// fires as long as another one is in a system call. Its clock is not the system's.
func inBubble() bool {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_REALTIME, &ts)
	return err == nil && time.Since(time.Unix(ts.Unix())).Abs() > time.Hour
}

// Fired reports whether Fire was called.
func (c *Call) Fired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fired
}

// Run makes the system call fn until it returns anything but ErrInterrupted, or Fire
// is called. It returns ErrImpossible, without a call of fn, where Fire could not end
// it.
func (c *Call) Run(fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old unix.Sigset_t
	if unix.PthreadSigmask(unix.SIG_UNBLOCK, &mask, &old) != nil {
		return ErrImpossible
	}
	if has(&old, signum) {
		defer unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	}
	if !Possible() || !tried() {
		return ErrImpossible
	}
	c.mu.Lock()
	if c.fired {
		c.mu.Unlock()
		return ErrInterrupted
	}
	c.tid = unix.Gettid()
	c.mu.Unlock()

	err := fn()
	for err == ErrInterrupted && !c.Fired() {
		err = fn()
	}

	c.mu.Lock()
	c.tid = 0
	sent := c.sent
	if c.gone != nil {
		close(c.gone)
	}
	c.mu.Unlock()
	if sent {
		// A signal that was sent is delivered at the latest on the return from
		// this call, so no later call of this thread sees it.
		unix.Gettid()
	}
	return err
}
