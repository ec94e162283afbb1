//go:build (darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd) && !(linux && (amd64 || arm64 || riscv64))

package flockctx

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

func openPath(path string, flag int, perm fs.FileMode) (descriptor, error) {
	return sysOpen(path, flag, perm)
}

func identifyPath(path string) (fileID, error) { return sysIdentify(0, path) }

func fstat(fd uintptr, st *unix.Stat_t) error { return unix.Fstat(int(fd), st) }

func flock(fd uintptr, how int) error { return unix.Flock(int(fd), how) }
