//go:build dragonfly || freebsd || illumos || netbsd || openbsd

package flockctx

import "golang.org/x/sys/unix"

func ofdLock(fd uintptr, r request) error { return unix.ENOSYS }
