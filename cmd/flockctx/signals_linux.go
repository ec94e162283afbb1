//go:build linux

package main

import (
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fatal are the signals that end a process which does not expect them. (SIGPIPE and those
// that a fault of the program causes are left to Go's runtime.)
var fatal = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGABRT, unix.SIGTRAP, unix.SIGSYS,
	unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGVTALRM, unix.SIGPROF, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGIO, unix.SIGPWR,
}

// dieByDefault makes the kernel end the process by those signals, as it does with
// flock(1). Go's runtime has handlers for all: most discard the signal, that of
// SIGQUIT prints the stacks of all goroutines.
func dieByDefault() {
	for _, s := range fatal {
		switch s {
		case unix.SIGHUP, unix.SIGINT, unix.SIGTERM:
			// Of these the runtime dies as well; but as process 1 of a container it has
			// no handlers, as flock(1), and the kernel then delivers it none of them.
			if os.Getpid() != 1 {
				continue
			}
		}
		if isIgnored(s) {
			signal.Ignore(s)
			continue
		}
		// A struct sigaction of zeros, of any architecture's size, is SIG_DFL.
		var action [64]byte
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s.(syscall.Signal)), uintptr(unsafe.Pointer(&action)), 0, sigsetSize(), 0, 0)
	}
}

// sigsetSize is the size of the kernel's sigset_t: of 64 signals, or on MIPS 128.
func sigsetSize() uintptr {
	if strings.HasPrefix(runtime.GOARCH, "mips") {
		return 16
	}
	return 8
}
