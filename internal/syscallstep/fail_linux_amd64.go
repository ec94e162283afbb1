package syscallstep

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// skipCall makes the system call that the thread enters one that does not exist.
func skipCall(pid int) error {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &r); err != nil {
		return err
	}
	r.Orig_rax = ^uint64(0)
	return unix.PtraceSetRegs(pid, &r)
}

// setResult has the system call that the thread leaves return errno.
func setResult(pid int, errno syscall.Errno) error {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &r); err != nil {
		return err
	}
	r.Rax = uint64(-int64(errno))
	return unix.PtraceSetRegs(pid, &r)
}
