package syscallstep

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mark says where the steps begin, and the second time where they end. In a process
// that Run did not start it stops the process: do not call it there.
func Mark() { unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP) }

// A Step is the entry to a system call, before it has done anything, or the exit, when
// it has. The calls of a Go program's runtime are no steps, which come and go by chance.
type Step struct {
	N    int // counts the steps, from 0
	Call int // the number of the system call, at the entry; -1 at the exit
}

// An Action is what to do at a Step.
type Action struct {
	Kill bool          // kill the process here
	Fail syscall.Errno // at an entry, on amd64: do not make the call, but let it return this error
}

// Run runs cmd and calls do at each step. It returns nil when the command was killed
// as do said, or else ended well.
func Run(cmd *exec.Cmd, do func(Step) Action) error {
	// A tracer is a thread, and the one that starts the command.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Ptrace = true
	if err := cmd.Start(); err != nil {
		return err
	}
	killed, err := follow(cmd.Process.Pid, do)
	if killed || err != nil {
		cmd.Process.Kill()
	}
	werr := cmd.Wait()
	if killed || err != nil {
		return err
	}
	return werr
}

// follow follows the thread until its second mark.
func follow(pid int, do func(Step) Action) (killed bool, err error) {
	marks, n := 0, 0
	var fail syscall.Errno
	skip := false                        // this system call is the runtime's
	if _, err := wait(pid); err != nil { // the execve
		return false, err
	}
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL); err != nil {
		return false, fmt.Errorf("ptrace: %w", err)
	}
	signal := 0
	for {
		if marks == 0 {
			err = unix.PtraceCont(pid, signal)
		} else {
			err = unix.PtraceSyscall(pid, signal)
		}
		if err != nil {
			return false, fmt.Errorf("ptrace: %w", err)
		}
		stop, err := wait(pid)
		if err != nil {
			return false, err
		}
		signal = 0
		switch stop {
		case unix.SIGTRAP | 0x80:
		case unix.SIGSTOP:
			if marks++; marks == 2 {
				return false, unix.PtraceDetach(pid)
			}
			continue
		default:
			signal = int(stop)
			continue
		}
		call, err := callEntered(pid)
		if err != nil {
			return false, err
		}
		if call >= 0 {
			skip = runtimeCalls[call]
		}
		if skip {
			continue
		}
		s := Step{N: n, Call: call}
		n++
		if s.Call < 0 && fail != 0 {
			if err := setResult(pid, fail); err != nil {
				return false, err
			}
			fail = 0
		}
		a := do(s)
		if a.Kill {
			return true, nil
		}
		if a.Fail != 0 && s.Call >= 0 {
			fail = a.Fail
			if err := skipCall(pid); err != nil {
				return false, err
			}
		}
	}
}

// runtimeCalls are those for memory, threads, time and signals.
var runtimeCalls = map[int]bool{
	unix.SYS_FUTEX: true, unix.SYS_SCHED_YIELD: true, unix.SYS_NANOSLEEP: true, unix.SYS_CLONE: true, unix.SYS_CLOCK_GETTIME: true,
	unix.SYS_MMAP: true, unix.SYS_MUNMAP: true, unix.SYS_MADVISE: true, unix.SYS_MPROTECT: true,
	unix.SYS_RT_SIGACTION: true, unix.SYS_RT_SIGPROCMASK: true, unix.SYS_RT_SIGRETURN: true, unix.SYS_SIGALTSTACK: true,
	unix.SYS_TGKILL: true, unix.SYS_GETPID: true, unix.SYS_GETTID: true, unix.SYS_EPOLL_PWAIT: true, unix.SYS_EPOLL_CTL: true,
}

// wait waits for the thread to stop, and says by which signal.
func wait(pid int) (syscall.Signal, error) {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait: %w", err)
		}
		if !ws.Stopped() {
			return 0, errors.New("the command ended before its second mark")
		}
		return syscall.Signal(ws.StopSignal()), nil
	}
}

// callEntered returns the number of the system call that the stopped thread enters, or
// -1 where it leaves one.
func callEntered(pid int) (int, error) {
	var info struct {
		op   uint8
		_    [3]uint8
		arch uint32
		_    [2]uint64 // instruction and stack pointer
		nr   uint64
		args [6]uint64
	}
	const getSyscallInfo, entry = 0x420e, 1
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(pid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return 0, fmt.Errorf("ptrace: %w", errno)
	}
	if info.op != entry {
		return -1, nil
	}
	return int(info.nr), nil
}
