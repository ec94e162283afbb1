//go:build linux

// Package seccomp denies system calls to the process.
package seccomp

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// calls are the system calls that can be denied: those that the library makes and
// that sandboxes are known to deny.
var calls = map[string]uint32{
	"tgkill":            unix.SYS_TGKILL,
	"rt_sigaction":      unix.SYS_RT_SIGACTION,
	"rt_sigprocmask":    unix.SYS_RT_SIGPROCMASK,
	"kcmp":              unix.SYS_KCMP,
	"statx":             unix.SYS_STATX,
	"flock":             unix.SYS_FLOCK,
	"fcntl":             unix.SYS_FCNTL,
	"fstatfs":           unix.SYS_FSTATFS,
	"name_to_handle_at": unix.SYS_NAME_TO_HANDLE_AT,
	"pidfd_open":        unix.SYS_PIDFD_OPEN,
	"pidfd_getfd":       unix.SYS_PIDFD_GETFD,
	"process_vm_readv":  unix.SYS_PROCESS_VM_READV,
	"gettid":            unix.SYS_GETTID,
}

var answers = map[string]uint32{
	"EPERM":  unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM),
	"ENOSYS": unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS),
	"EACCES": unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES),
	"trap":   unix.SECCOMP_RET_TRAP,
}

// Deny installs a filter in all threads, for ever: CALL[,CALL…]=ANSWER. The answer is
// an error (EPERM, ENOSYS, EACCES) or a SIGSYS (trap). The error matches
// errors.ErrUnsupported where the system has no filters.
func Deny(spec string) error {
	list, answer, _ := strings.Cut(spec, "=")
	verdict, ok := answers[answer]
	if !ok {
		return fmt.Errorf("no such answer: %q", answer)
	}
	// struct seccomp_data begins with the number of the call.
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}}
	for name := range strings.SplitSeq(list, ",") {
		number, ok := calls[name]
		if !ok {
			return fmt.Errorf("no such call: %q", name)
		}
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: number, Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: verdict})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w: %w", err, errors.ErrUnsupported)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("seccomp: %w: %w", errno, errors.ErrUnsupported)
	}
	return nil
}
