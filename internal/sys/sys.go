// Package sys is what the operating systems differ in: opening a file, telling files
// apart, locking one, and the kinds of file system that want it done otherwise. It
// knows no goroutine, no context and no handle.
//
// A [Descriptor] is an open file. It belongs to one goroutine at a time, but for Lock,
// whose calls may overlap. Each call is made once, and its outcome is one of a few
// errors that mean the same everywhere, or the system's own: whoever wants to wait, or
// to try again, does so outside.
package sys

import (
	"errors"
	"fmt"
)

var (
	// ErrBusy: the lock is taken by another open file. From Open, a lease of another
	// process has to be broken first, or a removed file keeps its name for the moment.
	ErrBusy = errors.New("busy")

	// ErrStale: the path names another file than the open one, or none.
	ErrStale = errors.New("stale")
)

// An Op is what Lock does.
type Op uint8

const (
	Try    Op = iota // take the lock at once, or fail with ErrBusy
	Unlock           // release the lock; no error where there is none
	wait             // wait for the lock, see Descriptor.Wait
)

// A Request is what to ask the kernel for.
type Request struct {
	Op     Op
	Shared bool

	// OFD: an open file description lock of fcntl(2) on the bytes from Start on, Length
	// of them or to the end where Length is 0. Else it is flock(2), or LockFileEx.
	OFD           bool
	Start, Length int64

	// Convert: the descriptor may hold the lock in the other mode, which is to be
	// replaced. flock(2) and fcntl(2) always do so; Windows and CIFS would add a lock.
	Convert bool
}

// A FileID tells files apart: on unix by device and inode, on Windows by volume
// serial number and file index. An inode alone is not unique across mounts. Where it is
// not even unique on one, as some FUSE and network file systems have it, Handle is a
// hash of the file's handle (name_to_handle_at(2)), and else 0.
type FileID struct{ Dev, Ino, Handle uint64 }

// Unsupported returns an error that says in its own words what cannot be locked, and
// matches errors.ErrUnsupported.
func Unsupported(format string, args ...any) error {
	return &unsupportedError{text: fmt.Sprintf(format, args...)}
}

// unsupportedError matches errors.ErrUnsupported and, where there is one, the system's
// error.
type unsupportedError struct {
	text string
	err  error
}

func (e *unsupportedError) Error() string {
	if e.err != nil {
		return e.text + ": " + e.err.Error()
	}
	return e.text
}
func (e *unsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }
func (e *unsupportedError) Unwrap() error        { return e.err }

// annotated is a system's error with what it means here.
type annotated struct {
	text string
	err  error
}

func (e *annotated) Error() string { return e.text + ": " + e.err.Error() }
func (e *annotated) Unwrap() error { return e.err }
