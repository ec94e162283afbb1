//go:build !(mips || mipsle || mips64 || mips64le)

package flockctx

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Waiting in the kernel, and the signal that ends it. See docs/design.md,
// "Interrupting the kernel". (On mips, struct sigaction is laid out differently,
// and nobody was found to test it: it polls.)

// An interrupt ends the system call of one thread.
type interrupt struct {
	tid int

	mu    sync.Mutex // guards the rest, and is held while a signal is sent
	fired bool       // somebody wants the thread to leave
	sent  bool       // a signal was sent
	left  bool       // the thread left: it must not be sent a signal any more
	gone  chan struct{}
}

// fire sends the thread signals until it has left. One may not do: it can arrive
// before the thread is inside the call.
func (in *interrupt) fire() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.fired = true
	if in.left {
		return
	}
	if in.gone == nil {
		in.gone = make(chan struct{})
	}
	gone := in.gone
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for d := 50 * time.Microsecond; !in.left; d = min(2*d, 10*time.Millisecond) {
		// Whoever changed the signal's disposition meanwhile does not stop it.
		if sig := interruptSignal(); sig != 0 {
			unix.Tgkill(unix.Getpid(), in.tid, sig)
			in.sent = true
		}
		in.mu.Unlock()
		timer.Reset(d) // not time.Sleep, which an idle process wakes from up to 1 ms late
		select {
		case <-gone:
		case <-timer.C:
		}
		in.mu.Lock()
	}
}

// canBlock reports whether a wait in the kernel can be interrupted.
func canBlock() bool { return interruptSignal() != 0 }

// isLocal reports whether the file is on a file system where an interrupt ends a
// wait in the kernel at once.
func (d *descriptor) isLocal() (local bool) {
	d.control(func(fd uintptr) error {
		_, local = fileSystem(fd)
		return nil
	})
	return local
}

// block waits in the kernel for the lock in mode m. It returns nil, errEnded,
// fs.ErrClosed, errMustPoll, or the system's error.
func (l *Flock) block(a *attempt, m Mode) error {
	if !canBlock() {
		return errMustPoll
	}
	in := &interrupt{}
	ended := make(chan struct{})
	stop := func() bool { return true }
	err := in.onThread(func() error {
		if err := l.beginWait(in); err != nil {
			return err
		}
		if a.ctx.Done() != nil {
			stop = context.AfterFunc(a.ctx, func() {
				defer close(ended)
				in.fire()
			})
		}
		r := l.request(opBlock)
		r.mode = m
		return l.desc.control(func(fd uintptr) error {
			for {
				err := sysLock(fd, r)
				if err == nil {
					return l.desc.confirm(fd, r)
				}
				if err != errInterrupted || in.wasFired() {
					return err
				}
			}
		})
	})
	// No goroutine is left behind. To wait for one that is locked to its thread takes
	// two switches of threads: so this one is not any more.
	if !stop() {
		<-ended
	}
	return l.endWait(err)
}

// onThread calls fn, with a system call that in can end, on a thread of its own. When
// it returns, that thread is not sent signals any more.
func (in *interrupt) onThread(fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old sigset
	if err := sigmask(unix.SIG_UNBLOCK, &realTime, &old); err != nil {
		return errMustPoll
	}
	if old&realTime != 0 {
		defer sigmask(unix.SIG_SETMASK, &old, nil)
	}
	in.tid = unix.Gettid()
	err := fn()
	in.mu.Lock()
	in.left = true
	sent := in.sent
	if in.gone != nil {
		close(in.gone)
	}
	in.mu.Unlock()
	if sent {
		// A signal that was sent is delivered at the latest on the return from
		// this call, so no later call of this thread sees it.
		unix.Gettid()
	}
	return err
}

// wasFired reports whether fire was called.
func (in *interrupt) wasFired() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.fired
}

// A sigset is the kernel's set of signals.
type sigset uint64

// realTime are the real-time signals for which Go's runtime has a handler.
var realTime sigset = 1<<64 - 1<<(firstSignal-1)

const firstSignal, lastSignal = 35, 64

// sigmask changes the signal mask of the thread: rt_sigprocmask(2).
func sigmask(how int, set, old *sigset) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, uintptr(how),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(*set), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// A sigaction is the kernel's struct, of which only the first two words are looked
// at: all architectures but mips begin so, and what follows (the restorer and the
// mask, in either order) is handed back as it came.
type sigaction struct {
	handler, flags uintptr
	rest           [30]uintptr
}

// action gets and sets the disposition of a signal: rt_sigaction(2).
func action(sig unix.Signal, set, old *sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(sigset(0)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// chosen is the signal in use, 0 before the first wait.
var chosen atomic.Int32

// runtimeHandler is the runtime's signal handler, 0 before the first wait.
var runtimeHandler atomic.Uintptr

// interruptSignal returns a signal whose delivery makes a system call return EINTR
// and does nothing else, or 0 if there is none.
//
// Go's runtime has its handler on every real-time signal from 35 up, and drops those
// that no one asked for with signal.Notify. It sets SA_RESTART, which is taken off
// here. Programs can change that behind our back (signal.Ignore, then Notify): so
// this is called before each wait and each signal sent, and mends what it finds.
func interruptSignal() unix.Signal {
	var act sigaction
	if sig := unix.Signal(chosen.Load()); sig != 0 && prepare(sig, &act) {
		return sig
	}
	// The runtime's own handler is that of SIGURG, with which it preempts.
	if runtimeHandler.Load() == 0 && action(unix.SIGURG, nil, &act) == nil && act.handler > 1 {
		runtimeHandler.Store(act.handler)
	}
	// Few programs use the highest ones.
	for sig := unix.Signal(lastSignal); sig >= firstSignal; sig-- {
		if prepare(sig, &act) {
			chosen.Store(int32(sig))
			return sig
		}
	}
	// The program ignores all of them, and perhaps has waits under way. To put
	// the handler back by hand would be fatal: of a signal that the runtime does
	// not know to be handled it takes the default action. It has to do so itself.
	if sig := unix.Signal(chosen.Load()); sig != 0 && action(sig, nil, &act) == nil && act.handler <= 1 {
		c := make(chan os.Signal, 1)
		signal.Notify(c, sig)
		signal.Stop(c)
		if prepare(sig, &act) {
			return sig
		}
	}
	return 0
}

// prepare reports whether sig has the runtime's handler, and takes SA_RESTART off.
func prepare(sig unix.Signal, act *sigaction) bool {
	const restart = 0x10000000 // SA_RESTART
	if action(sig, nil, act) != nil || act.handler <= 1 || act.handler != runtimeHandler.Load() {
		return false
	}
	if act.flags&restart == 0 {
		return true
	}
	act.flags &^= restart
	return action(sig, act, nil) == nil
}
