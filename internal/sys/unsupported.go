//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd || windows)

package sys

import (
	"io/fs"
	"os"
	"runtime"

	"github.com/flockctx/flockctx/internal/interrupt"
)

var writeRefusals, noFile, forgotten []error

var errPlatform = Unsupported("%s has no lock of open files", runtime.GOOS)

// openAny refuses before it creates anything.
func openAny(path string, flag int, perm fs.FileMode) (Descriptor, error) {
	if _, err := os.Stat(path); err != nil && path == "" {
		return Descriptor{}, err
	}
	return Descriptor{}, errPlatform
}

const rootFlags = 0

var errAgain error

// Create would create a file.
func Create(path string, flag int, perm fs.FileMode) (Descriptor, error) {
	return Descriptor{}, errPlatform
}

// Close closes a bare descriptor, of which there is none.
func Close(fd uintptr) error { return errPlatform }

func identifyOpen(fd uintptr) (FileID, kind, error) { return FileID{}, unknown, errPlatform }

func identifyPath(path string, handle bool) (FileID, error) { return FileID{}, errPlatform }

func lock(fd uintptr, r Request) error { return errPlatform }

func newFile(fd uintptr, path string) *os.File { return nil }

// Wait would wait in the kernel.
func (d *Descriptor) Wait(call *interrupt.Call, r Request) error { return errPlatform }

// NewCall returns what would end a Wait.
func (d *Descriptor) NewCall() (call *interrupt.Call, free func(), err error) {
	return nil, nil, interrupt.ErrImpossible
}
