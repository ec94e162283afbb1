package sys

import (
	"errors"
	"io/fs"
	"os"
	"slices"
)

// A Descriptor is an open file, or with the zero value none. Each number of a descriptor
// has one owner: the os.File once there is one, and before that the Descriptor. (An
// os.File over a number that is also closed by hand would close, at its collection,
// whatever file has the number by then.)
type Descriptor struct {
	ID   FileID
	fd   uintptr
	file *os.File // nil for a bare descriptor
	open bool
	kind kind // of its file system
}

// Borrow returns a Descriptor of a file that is somebody else's to close.
func Borrow(f *os.File) (d Descriptor, err error) {
	d = Descriptor{file: f, open: true}
	err = d.control(func(fd uintptr) (err error) {
		d.ID, d.kind, err = identifyOpen(fd)
		return err
	})
	return d, err
}

// IsOpen reports whether there is an open file.
func (d *Descriptor) IsOpen() bool { return d.open }

// Bare returns the number of a descriptor that no os.File owns.
func (d *Descriptor) Bare() (fd uintptr, ok bool) { return d.fd, d.open && d.file == nil }

// Made returns the os.File of the open file, or nil if there is none.
func (d *Descriptor) Made() *os.File { return d.file }

// File returns the os.File of the open file, which it makes with the name path if there
// is none yet.
func (d *Descriptor) File(path string) *os.File {
	if d.file == nil && d.open {
		d.file = newFile(d.fd, path)
	}
	return d.file
}

// control calls fn with the number of the descriptor, which stays open meanwhile. It
// returns fs.ErrClosed where the owner of the os.File has closed it.
func (d *Descriptor) control(fn func(fd uintptr) error) error {
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

// Lock does r at once. The error is nil, ErrBusy, fs.ErrClosed where the os.File was closed,
// or the system's, which IsForgotten knows where the server has forgotten the file.
func (d *Descriptor) Lock(r Request) error {
	return d.control(func(fd uintptr) error { return lock(fd, r) })
}

// Lock is Descriptor.Lock for a bare descriptor.
func Lock(fd uintptr, r Request) error { return lock(fd, r) }

// CheckOpen returns fs.ErrClosed where the os.File was closed by its owner.
func (d *Descriptor) CheckOpen() error {
	return d.control(func(uintptr) error { return nil })
}

// confirm returns nil, or fs.ErrClosed where the os.File was closed by its owner while
// it waited for the lock on fd, inside control. Such a lock would go with the return
// from control, or stay for ever with a child that has the file: it is given back.
func (d *Descriptor) confirm(fd uintptr, r Request) error {
	if d.file == nil {
		return nil
	}
	err := d.CheckOpen()
	if err != nil {
		r.Op = Unlock
		lock(fd, r)
	}
	return err
}

// Truncate empties the file.
func (d *Descriptor) Truncate(path string) error { return d.File(path).Truncate(0) }

// Close closes the file.
func (d *Descriptor) Close() error {
	if d.file != nil {
		return d.file.Close()
	}
	return Close(d.fd)
}

// Same reports whether d and f are known to be of the same open file description.
func (d *Descriptor) Same(f *os.File) (same bool) {
	o := Descriptor{file: f, open: true}
	d.control(func(a uintptr) error {
		return o.control(func(b uintptr) error {
			same = sameDescription(a, b)
			return nil
		})
	})
	return same
}

// verify is Verify on any file system.
func (d *Descriptor) verify(path string) error {
	if err := d.refresh(path); err != nil {
		return err
	}
	id, err := identifyPath(path, d.ID.Handle != 0)
	if err == nil && id == d.ID {
		return nil
	}
	if err == nil || namesNone(err) {
		return ErrStale
	}
	return d.kind.lookError(err)
}

// namesNone reports whether err, of a look at a path, says that it names no file that can
// be locked.
func namesNone(err error) bool {
	_, special := err.(*unsupportedError)
	return special || errors.Is(err, fs.ErrNotExist) || matches(err, noFile)
}

// IsForgotten reports whether err says that the server knows the file no more, under the
// handle that the client has for it.
func IsForgotten(err error) bool { return matches(err, forgotten) }

func matches(err error, any []error) bool {
	return slices.ContainsFunc(any, func(e error) bool { return errors.Is(err, e) })
}

// Identify identifies the file that path names, by all but its Handle.
func Identify(path string) (FileID, error) { return identifyPath(path, false) }

// MayRead reports whether after err, from opening a file for reading and writing, it
// may be possible to open it for reading.
func MayRead(err error) bool {
	return errors.Is(err, fs.ErrPermission) || matches(err, writeRefusals)
}
