//go:build !(mips || mipsle || mips64 || mips64le)

package interrupt

import (
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The signal is SIGWINCH, since it can do no harm wherever it lands. Its default is to
// be ignored, and Go's runtime drops it where it has no use for it, also while the
// program changes its disposition (a real-time signal or SIGIO would kill the process
// then). It needs no place in the user's queue of signals, many of them to one thread
// are one, emulators have it, and who asked for it (signal.Notify) finds out that the
// terminal has its old size. SIGURG, which has all this too, is the one with which the
// runtime preempts: it would interrupt calls that have nothing to do with a wait.
//
// (On mips, struct sigaction is laid out differently, and nobody was found to test it.)
const signum = unix.SIGWINCH

// sigsetSize is the size of the kernel's set of signals.
const sigsetSize = 8

// mask is the set of that signal alone.
var mask = setOf(signum)

func setOf(sig unix.Signal) (s unix.Sigset_t) {
	bits := 8 * int(unsafe.Sizeof(s.Val[0]))
	s.Val[(int(sig)-1)/bits] |= 1 << ((int(sig) - 1) % bits)
	return s
}

func has(s *unix.Sigset_t, sig unix.Signal) bool {
	one := setOf(sig)
	for i := range s.Val {
		if s.Val[i]&one.Val[i] != 0 {
			return true
		}
	}
	return false
}

// broken is set once a signal could not be sent: a filter forbids it since.
var broken atomic.Bool

// Possible reports whether a wait that begins now could be ended: the signal can be
// sent, and has the handler of Go's runtime. Where Go is a library in a C program the
// handler is the host's, and where the program ignores the signal there is none.
func Possible() bool {
	if broken.Load() {
		return false
	}
	var act sigaction
	return action(nil, &act) == nil && isRuntime(act.handler) && clearRestart(act)
}

// tried reports whether a signal that a thread sends to itself arrives, and interrupts
// a system call. The first wait of the process tries it, on its own thread, where
// emulators and sandboxes show what they lack.
var tried = sync.OnceValue(func() bool {
	if unix.PthreadSigmask(unix.SIG_BLOCK, &mask, nil) != nil {
		return false
	}
	defer unix.PthreadSigmask(unix.SIG_UNBLOCK, &mask, nil)
	if send(unix.Gettid()) != nil {
		return false
	}
	// The signal is pending. This call lets it in, alone, and would else take a second.
	var others unix.Sigset_t
	for i := range others.Val {
		others.Val[i] = ^mask.Val[i]
	}
	timeout := unix.Timespec{Sec: 1}
	_, _, errno := unix.Syscall6(unix.SYS_PPOLL, 0, 0, uintptr(unsafe.Pointer(&timeout)),
		uintptr(unsafe.Pointer(&others)), sigsetSize, 0) // not unix.Ppoll, which gives no size
	return errno == unix.EINTR
})

// send sends the signal to a thread of this process.
func send(tid int) error {
	err := unix.Tgkill(unix.Getpid(), tid, signum)
	if err != nil {
		broken.Store(true)
	}
	return err
}

// A hold keeps the program from taking the handler away while a wait is to be ended.
type hold struct{ c chan os.Signal }

// arm sees to a handler that interrupts, whatever the program has done to it since
// the wait began, and reports whether there is one.
//
// To put the runtime's handler back by hand would not do: it has to know. So where it
// is gone (signal.Ignore, or where Go is a library also signal.Stop) the runtime is
// asked to handle the signal for as long as the hold lasts. If somebody else's has come
// in its place, that one interrupts as well.
func (h *hold) arm() bool {
	var act sigaction
	if action(nil, &act) != nil {
		return false
	}
	if act.handler <= 1 {
		if h.c == nil {
			h.c = make(chan os.Signal, 1)
		}
		signal.Notify(h.c, signum)
		if action(nil, &act) != nil || act.handler <= 1 {
			return false
		}
	}
	return clearRestart(act)
}

func (h *hold) release() {
	if h.c != nil {
		signal.Stop(h.c)
	}
}

// isRuntime reports whether handler is a function of Go's runtime. A host program can have
// one handler of its own for many signals, so it is its name that tells.
func isRuntime(handler uintptr) bool {
	if handler <= 1 {
		return false
	}
	if handler == known.Load() {
		return true
	}
	f := runtime.FuncForPC(handler)
	if f == nil || !strings.HasPrefix(f.Name(), "runtime.") {
		return false
	}
	known.Store(handler)
	return true
}

// known is a handler that isRuntime has found to be one.
var known atomic.Uintptr

// A sigaction is the kernel's struct, of which only the first two words are looked
// at: all architectures but mips begin so, and what follows (the restorer and the
// mask, in either order) is handed back as it came.
type sigaction struct {
	handler, flags uintptr
	rest           [30]uintptr
}

const restart = 0x10000000 // SA_RESTART

// changing is held while SA_RESTART is taken off: of two who do that at once, one would
// take what the other put in place for the program's.
var changing sync.Mutex

// clearRestart takes SA_RESTART off the disposition, which was act a moment ago, and
// reports whether the handler is still that one, and interrupts now.
//
// The runtime, or C code, may change the disposition at the same moment, and must win. The
// kernel replaces it and says what it replaced in one step: so what was lost in the race
// is seen, and put in place, which is a race again. What is put in place has no SA_RESTART
// and what the runtime sets always has: the two cannot be mistaken for each other.
func clearRestart(act sigaction) bool {
	if act.flags&restart == 0 {
		return true
	}
	changing.Lock()
	defer changing.Unlock()
	handler := act.handler
	if action(nil, &act) != nil {
		return false
	}
	for there := act; ; {
		act.flags &^= restart
		var old sigaction
		if action(&act, &old) != nil {
			return false
		}
		if old == there {
			return act.handler == handler
		}
		there, act = act, old
	}
}

// action gets and sets the disposition of the signal: rt_sigaction(2).
func action(set, old *sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signum),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), sigsetSize, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
