package flockctx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/sys"
)

var (
	// ErrLocked says that a TryLock or TryConvert found the lock taken, or promised
	// to a goroutine of this process that has waited for it.
	ErrLocked = errors.New("flockctx: locked by another holder")

	// ErrNotLocked says that the handle does not hold the lock: an Unlock
	// without a Lock, or a Convert that lost it.
	ErrNotLocked = errors.New("flockctx: not locked")
)

// A BusyError says that a lock was not acquired because another holder had it, or
// because the context was done. Nothing is held or left behind; but after Convert the
// lock is held in its old mode, unless the error matches ErrNotLocked as well.
type BusyError struct {
	Path   string        // as given by the caller
	Mode   Mode          // that was asked for
	Waited time.Duration // how long the call waited, zero where it did not
	Err    error         // matches ErrLocked, or ctx.Err() and context.Cause(ctx)

	at string // what Path meant
}

func (e *BusyError) Error() string {
	how := ""
	switch {
	case e.Waited != 0:
		how = fmt.Sprintf("gave up after %v: ", e.Waited)
	case !errors.Is(e.Err, ErrLocked):
		how = "the context had ended: "
	}
	return fmt.Sprintf("flockctx: lock %s (%v): %s%v", e.Path, e.Mode, how, bare(e.Err))
}

// Holders returns who holds the lock that was not to be had, or waits for it, at this
// moment, which is later: see [Holders].
func (e *BusyError) Holders() ([]Holder, error) {
	if e.at == "" {
		return Holders(e.Path)
	}
	return Holders(e.at)
}

// Unwrap returns e.Err.
func (e *BusyError) Unwrap() error { return e.Err }

// Timeout reports whether a deadline ended the wait, or had passed before.
func (e *BusyError) Timeout() bool { return errors.Is(e.Err, context.DeadlineExceeded) }

// bare returns err's text without this package's prefix, for use inside a message.
func bare(err error) string {
	switch err {
	case ErrLocked, nil:
		return "locked by another holder"
	case ErrNotLocked:
		return "not locked"
	}
	return err.Error()
}

// causedError is the end of a context that was given a cause.
type causedError struct{ err, cause error }

func (e *causedError) Error() string   { return e.err.Error() + ": " + e.cause.Error() }
func (e *causedError) Unwrap() []error { return []error{e.err, e.cause} }

// lostError says that an operation on a held lock lost it.
type lostError struct{ err error }

func (e *lostError) Error() string   { return "the lock is lost: " + bare(e.err) }
func (e *lostError) Unwrap() []error { return []error{ErrNotLocked, e.err} }

// pathError adds the operation and the path, unless err has them already.
func pathError(op, path string, err error) error {
	if pe, ok := err.(*fs.PathError); ok {
		err = pe.Err
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// errBusy: a try-lock found the lock taken. errEnded: the context is done. errStale: the
// path names another file by now. None of them leaves the package.
var (
	errBusy  = sys.ErrBusy
	errEnded = gate.ErrEnded
	errStale = sys.ErrStale
)
