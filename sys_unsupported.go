//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd || windows)

package flockctx

import (
	"io/fs"
	"os"
	"runtime"
)

var writeRefusals []error

var errPlatform = unsupported("%s has no lock of open files", runtime.GOOS)

// sysOpen refuses before it creates anything.
func sysOpen(path string, flag int, perm fs.FileMode) (descriptor, error) {
	if _, err := os.Stat(path); err != nil && path == "" {
		return descriptor{}, err
	}
	return descriptor{}, errPlatform
}

func sysClose(fd uintptr) error { return errPlatform }

func sysIdentify(fd uintptr, path string) (fileID, error) { return fileID{}, errPlatform }

func sysLock(fd uintptr, r request) error { return errPlatform }

func sysFile(fd uintptr, path string) *os.File { return nil }
