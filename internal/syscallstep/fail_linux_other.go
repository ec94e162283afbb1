//go:build linux && !amd64

package syscallstep

import (
	"errors"
	"syscall"
)

func skipCall(pid int) error { return errors.ErrUnsupported }

func setResult(pid int, errno syscall.Errno) error { return errors.ErrUnsupported }
