//go:build linux || darwin

package sys

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// ofdLock does r, a request for an open file description lock, on fd.
func ofdLock(fd uintptr, r Request) error {
	// The numbers of linux/fcntl.h and of XNU's sys/fcntl.h.
	set, setWait := 37, 38
	if runtime.GOOS == "darwin" || runtime.GOOS == "ios" {
		set, setWait = 90, 91
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: r.Start, Len: r.Length}
	cmd := set
	switch {
	case r.Op == Unlock:
		lk.Type = unix.F_UNLCK
	case r.Shared:
		lk.Type = unix.F_RDLCK
	}
	if r.Op == wait {
		cmd = setWait
	}
	return unix.FcntlFlock(fd, cmd, &lk)
}
