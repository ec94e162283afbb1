package flockctx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

var (
	// ErrLocked says that a TryLock found the lock taken, or promised to a
	// goroutine of this process that has waited for it.
	ErrLocked = errors.New("flockctx: locked by another holder")

	// ErrNotLocked says that the handle does not hold the lock: an Unlock
	// without a Lock, or a Convert that lost it.
	ErrNotLocked = errors.New("flockctx: not locked")
)

// A BusyError says that a lock was not acquired because another holder had it, or
// because the context was done. Nothing is held or left behind; after Convert the
// lock is held in its old mode.
type BusyError struct {
	Path   string        // as given by the caller
	Mode   Mode          // that was asked for
	Waited time.Duration // from when the call began to wait to its end; zero where it did not wait
	Err    error         // ErrLocked, or an error that matches ctx.Err() and context.Cause(ctx)
}

func (e *BusyError) Error() string {
	if e.Waited == 0 {
		return fmt.Sprintf("flockctx: lock %s (%v): %v", e.Path, e.Mode, bare(e.Err))
	}
	return fmt.Sprintf("flockctx: lock %s (%v): gave up after %v: %v", e.Path, e.Mode, e.Waited, bare(e.Err))
}

// Unwrap returns e.Err.
func (e *BusyError) Unwrap() error { return e.Err }

// Timeout reports whether a deadline ended the wait.
func (e *BusyError) Timeout() bool { return errors.Is(e.Err, context.DeadlineExceeded) }

// bare returns err's text without this package's prefix, for use inside a message.
func bare(err error) string {
	switch err {
	case ErrLocked:
		return "locked by another holder"
	case ErrNotLocked:
		return "not locked"
	}
	return err.Error()
}

// contextError returns an error for the end of ctx that matches both ctx.Err()
// and its cause.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause == nil || cause == err {
		return err
	}
	return &causedError{err, cause}
}

// causedError is the end of a context that was given a cause.
type causedError struct{ err, cause error }

func (e *causedError) Error() string   { return e.err.Error() + ": " + e.cause.Error() }
func (e *causedError) Unwrap() []error { return []error{e.err, e.cause} }

// lostError says that an operation on a held lock lost it.
type lostError struct{ err error }

func (e *lostError) Error() string   { return "the lock is lost: " + e.err.Error() }
func (e *lostError) Unwrap() []error { return []error{ErrNotLocked, e.err} }

// unsupportedError says in its own words what cannot be locked. It matches
// errors.ErrUnsupported and, where there is one, the system's error.
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

func unsupported(format string, args ...any) error {
	return &unsupportedError{text: fmt.Sprintf(format, args...)}
}

// pathError adds the operation and the path, unless err has them already.
func pathError(op, path string, err error) error {
	if pe, ok := err.(*fs.PathError); ok {
		err = pe.Err
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// errBusy: a try-lock found the lock taken. errEnded: ctx is done. errInterrupted:
// a system call was interrupted. errStale: the path names another file by now.
// None of them leaves the package.
var (
	errBusy        = errors.New("busy")
	errEnded       = errors.New("ended")
	errInterrupted = errors.New("interrupted")
	errStale       = errors.New("stale")
	errUpgrade     = errors.New("another goroutine holds the lock shared and waits to make it exclusive: unlock one of the two")
)
