package flockctx

import (
	"io/fs"
	"os"
)

// An op is what sysLock does.
type op uint8

const (
	opTry    op = iota // take the lock at once, or fail with errBusy
	opBlock            // wait for the lock, or fail with errInterrupted
	opUnlock           // release the lock
)

// A request is what to ask the kernel for.
type request struct {
	op            op
	mode          Mode
	mechanism     Mechanism
	start, length int64

	// convert: the descriptor may hold the lock in the other mode, which is to be
	// replaced. flock(2) and fcntl(2) always do so, Windows would add a lock.
	convert bool
}

// A descriptor is an open file. Each number of a descriptor has one owner: the
// os.File once there is one, and before that the descriptor. (An os.File over a
// number that is also closed by hand would close, at its collection, whatever file
// has the number by then.)
type descriptor struct {
	fd   uintptr
	file *os.File // nil for a bare descriptor
	id   fileID
}

// control calls fn with the number of the descriptor, which stays open meanwhile.
func (d *descriptor) control(fn func(fd uintptr) error) error {
	if d.file == nil {
		return fn(d.fd)
	}
	rc, err := d.file.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := rc.Control(func(fd uintptr) { err = fn(fd) }); cerr != nil {
		return fs.ErrClosed
	}
	return err
}

// lock does r. The error is nil, errBusy, errInterrupted, fs.ErrClosed where the
// os.File was closed, or the system's.
func (d *descriptor) lock(r request) error {
	if d.file == nil {
		return sysLock(d.fd, r)
	}
	return d.control(func(fd uintptr) error { return sysLock(fd, r) })
}

// confirm returns nil, or fs.ErrClosed where the os.File was closed by its owner while
// it waited for the lock on fd, inside control. Such a lock would go with the return
// from control, or stay for ever with a child that has the file: it is given back.
func (d *descriptor) confirm(fd uintptr, r request) error {
	if d.file == nil {
		return nil
	}
	err := d.control(func(uintptr) error { return nil })
	if err != nil {
		r.op = opUnlock
		sysLock(fd, r)
	}
	return err
}

func (d *descriptor) identify() (id fileID, err error) {
	err = d.control(func(fd uintptr) error {
		id, err = sysIdentify(fd, "")
		return err
	})
	return id, err
}

func (d *descriptor) truncate(path string) error {
	if d.file == nil {
		d.file = sysFile(d.fd, path)
	}
	return d.file.Truncate(0)
}

func (d *descriptor) close() error {
	if d.file != nil {
		return d.file.Close()
	}
	return sysClose(d.fd)
}
