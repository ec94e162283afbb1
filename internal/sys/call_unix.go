//go:build (darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd) && !(linux && (amd64 || arm64 || riscv64))

package sys

import "golang.org/x/sys/unix"

func fstat(fd uintptr, st *unix.Stat_t) error { return unix.Fstat(int(fd), st) }

func flock(fd uintptr, how int) error { return unix.Flock(int(fd), how) }
