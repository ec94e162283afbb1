//go:build linux

package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/landlock.h, since Linux 6.12.
const (
	scopeAbstractUnixSocket = 1 << 0
	scopeSignal             = 1 << 1
)

// landlock confines the signals of the command to its own processes. Files stay free.
func landlock(args []string) error {
	rules := struct{ fs, net, scoped uint64 }{scoped: scopeAbstractUnixSocket | scopeSignal}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), unsafe.Sizeof(rules), 0)
	if errno != 0 {
		return unsupported("Landlock with the scope of signals", errno)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return unsupported("no_new_privs", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return unsupported("Landlock", errno)
	}
	return become(args)
}
