//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package sys

import (
	"syscall"

	"github.com/flockctx/flockctx/internal/interrupt"
	"golang.org/x/sys/unix"
)

// lock does r on fd.
func lock(fd uintptr, r Request) error {
	if r.Convert && fileSystemOf(fd).kind.addsLocks() {
		unlock := r
		unlock.Op, unlock.Convert = Unlock, false
		if err := lock(fd, unlock); err != nil {
			return err
		}
	}
	var err error
	for range maxInterrupts {
		if r.OFD {
			err = ofdLock(fd, r)
		} else {
			err = flock(fd, flockOperation(r))
		}
		if err == nil {
			return nil
		}
		if err != unix.EINTR && err != restart {
			break
		}
		if r.Op == wait {
			return interrupt.ErrInterrupted
		}
	}
	return meaning(fd, r, err)
}

// restart is ERESTARTSYS, which some FUSE daemons hand out.
const restart = syscall.Errno(512)

// maxInterrupts is how often a call that does not wait is made again because a signal
// interrupted it. (One of a FUSE daemon that has nothing else to say is an error.)
const maxInterrupts = 1000

// meaning returns what the system's error for r on fd means.
func meaning(fd uintptr, r Request, err error) error {
	switch err {
	case unix.EWOULDBLOCK:
		return ErrBusy
	case unix.EACCES:
		// CIFS says so of a lock that is taken; elsewhere it is a refusal, such as
		// that of a security module.
		if r.Op != Unlock && fileSystemOf(fd).kind.deniesBusy() {
			return ErrBusy
		}
	case unix.EBADF:
		if isPathOnly(fd) {
			return &annotated{"the file is open with O_PATH, and such a descriptor cannot be locked", err}
		}
		access := "writing"
		if r.Shared {
			access = "reading"
		}
		return &annotated{"the lock needs the file open for " + access, err}
	case unix.ENOSYS, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOTTY:
		mechanism := "flock"
		if r.OFD {
			mechanism = "ofd"
		}
		return &unsupportedError{fileSystemOf(fd).name + " cannot lock (" + mechanism + ")", err}
	case unix.ENOLCK:
		f := fileSystemOf(fd)
		if f.kind.hasHandles() {
			return &annotated{f.name + " has no lock to give: its lock service is unreachable or out of locks", err}
		}
		return &annotated{f.name + " has no lock to give", err}
	}
	return err
}

// flockOperation returns the operation argument of flock(2).
func flockOperation(r Request) int {
	how := unix.LOCK_EX
	switch {
	case r.Op == Unlock:
		return unix.LOCK_UN
	case r.Shared:
		how = unix.LOCK_SH
	}
	if r.Op == Try {
		how |= unix.LOCK_NB
	}
	return how
}

// Wait waits in the kernel for the lock of r, which [interrupt.Call.Fire] of call ends.
// It returns nil, interrupt.ErrInterrupted, interrupt.ErrImpossible where the wait could
// not be ended, or what Lock returns.
func (d *Descriptor) Wait(call *interrupt.Call, r Request) error {
	r.Op = wait
	if d.kind.deniesBusy() {
		return interrupt.ErrImpossible // CIFS does not answer an interrupt
	}
	return d.control(func(fd uintptr) error {
		err := call.Run(func() error { return lock(fd, r) })
		if err == nil {
			err = d.confirm(fd, r)
		}
		return err
	})
}

// NewCall returns what ends a Wait on d. The one who called Wait then frees it.
func (d *Descriptor) NewCall() (call *interrupt.Call, free func(), err error) {
	return new(interrupt.Call), func() {}, nil
}
