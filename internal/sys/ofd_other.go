//go:build dragonfly || freebsd || illumos || netbsd || openbsd

package sys

import "golang.org/x/sys/unix"

func ofdLock(fd uintptr, r Request) error { return unix.ENOSYS }
