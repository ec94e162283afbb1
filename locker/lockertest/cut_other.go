//go:build !linux

package lockertest

import (
	"errors"
	"syscall"
)

// CanCut: this system lets a Proxy drop packets.
const CanCut = false

func deafen(syscall.RawConn) error   { return errors.ErrUnsupported }
func undeafen(syscall.RawConn) error { return errors.ErrUnsupported }
