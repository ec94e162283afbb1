package sys

import (
	"strings"
	"unsafe"

	"github.com/flockctx/flockctx/internal/interrupt"
	"golang.org/x/sys/windows"
)

// A lock of LockFileEx is mandatory for the bytes that it covers. So the one that
// stands for the file covers a byte that no file can have: the last offset is one
// less. Who locks the whole range of offsets, as Go's own go command does, meets it.
const lockLow, lockHigh = 1<<32 - 1, 1<<31 - 1

// lock does r on fd. Like flock(2), unlocking what is not locked is no error.
func lock(fd uintptr, r Request) error {
	if r.OFD {
		return Unsupported("Windows has no open file description locks; use Mechanism BSD")
	}
	h := windows.Handle(fd)
	if r.Op == Unlock || r.Convert {
		err := windows.UnlockFileEx(h, 0, 1, 0, &windows.Overlapped{Offset: lockLow, OffsetHigh: lockHigh})
		if err == windows.ERROR_NOT_LOCKED || err == windows.ERROR_LOCK_VIOLATION { // wine's word for it
			err = nil
		}
		if err != nil || r.Op == Unlock {
			return err
		}
	}
	call, err := interrupt.New(h)
	if err != nil {
		return err
	}
	defer call.Free()
	return run(call, h, r)
}

// run locks h by call.
func run(call *interrupt.Call, h windows.Handle, r Request) error {
	var flags uint32
	if !r.Shared {
		flags |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	if r.Op == Try {
		flags |= windows.LOCKFILE_FAIL_IMMEDIATELY
	}
	err := call.Run(func(o *windows.Overlapped) error {
		o.Offset, o.OffsetHigh = lockLow, lockHigh
		return windows.LockFileEx(h, flags, 0, 1, 0, o)
	})
	switch err {
	case windows.ERROR_LOCK_VIOLATION:
		return ErrBusy
	case windows.ERROR_INVALID_FUNCTION, windows.ERROR_INVALID_PARAMETER, windows.ERROR_NOT_SUPPORTED,
		windows.ERROR_CALL_NOT_IMPLEMENTED:
		return &unsupportedError{"the file system cannot lock (LockFileEx)", err}
	}
	return err
}

// Wait waits in the kernel for the lock of r, which [interrupt.Call.Fire] of call ends.
// It returns nil, interrupt.ErrInterrupted, interrupt.ErrImpossible where the wait could
// not be ended, or what Lock returns. Nil may come together with the end.
func (d *Descriptor) Wait(call *interrupt.Call, r Request) error {
	r.Op = wait
	return d.control(func(fd uintptr) error {
		err := run(call, windows.Handle(fd), r)
		if err == nil {
			err = d.confirm(fd, r)
		}
		return err
	})
}

// NewCall returns what ends a Wait on d. The one who called Wait then frees it.
//
// A file that is not open for overlapped operations, which only LockFile can be given,
// gets none: there a requested lock holds up the thread, and every use of the file,
// until it is granted.
func (d *Descriptor) NewCall() (call *interrupt.Call, free func(), err error) {
	if !interrupt.Possible() {
		return nil, nil, interrupt.ErrImpossible
	}
	err = d.control(func(fd uintptr) (err error) {
		if !isOverlapped(windows.Handle(fd)) {
			return interrupt.ErrImpossible
		}
		call, err = interrupt.New(windows.Handle(fd))
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return call, call.Free, nil
}

// isOverlapped reports whether the file is open for overlapped operations.
func isOverlapped(h windows.Handle) bool {
	const fileModeInformation = 16
	var mode uint32
	var iosb windows.IO_STATUS_BLOCK
	err := windows.NtQueryInformationFile(h, &iosb, (*byte)(unsafe.Pointer(&mode)), uint32(unsafe.Sizeof(mode)), fileModeInformation)
	return err == nil && mode&(windows.FILE_SYNCHRONOUS_IO_ALERT|windows.FILE_SYNCHRONOUS_IO_NONALERT) == 0
}

// IsLocal reports whether the file is on this machine, where a cancelled wait in the
// kernel ends at once.
func (d *Descriptor) IsLocal() (local bool) {
	const unc = `\\?\UNC\`
	d.control(func(fd uintptr) error {
		var path [windows.MAX_LONG_PATH]uint16
		n, err := windows.GetFinalPathNameByHandle(windows.Handle(fd), &path[0], uint32(len(path)), 0)
		local = err == nil && int(n) >= len(unc) && int(n) <= len(path) &&
			!strings.EqualFold(windows.UTF16ToString(path[:len(unc)]), unc)
		return nil
	})
	return local
}
