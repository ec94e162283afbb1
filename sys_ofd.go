//go:build linux || darwin

package flockctx

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// ofdLock does r, a request for an open file description lock, on fd.
func ofdLock(fd uintptr, r request) error {
	// The numbers of linux/fcntl.h and of XNU's sys/fcntl.h.
	set, setWait := 37, 38
	if runtime.GOOS == "darwin" || runtime.GOOS == "ios" {
		set, setWait = 90, 91
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: r.start, Len: r.length}
	cmd := set
	switch {
	case r.op == opUnlock:
		lk.Type = unix.F_UNLCK
	case r.mode == Shared:
		lk.Type = unix.F_RDLCK
	}
	if r.op == opBlock {
		cmd = setWait
	}
	return unix.FcntlFlock(fd, cmd, &lk)
}
