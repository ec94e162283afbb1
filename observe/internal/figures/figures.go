// Package figures is what the modules below observe say alike: why a lock was not had,
// and which durations their histograms tell apart.
package figures

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
)

// Seconds are the upper bounds of the buckets. A lock that is handed over at once takes
// some 20 µs, the patience of a request is seconds, and a nightly job may hold for an hour.
var Seconds = []float64{1e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 3600}

// Reason returns why a call did not get the lock, or what was wrong with its release, as
// one of few words: "locked", a TryLock found it taken; "timeout", a deadline ended the
// wait; "canceled", the context ended otherwise; "closed", the handle or file was closed;
// "lost", the lock, by Convert, or the lock or place in the queue of a locker;
// "unavailable", the server of a locker; or "" for all else, such as a file that cannot be
// opened.
func Reason(e flockctx.Event) string {
	busy := (*flockctx.BusyError)(nil)
	switch err := e.Err; {
	case errors.Is(err, locker.ErrUnavailable):
		return "unavailable"
	case e.Op == "convert" && errors.Is(err, flockctx.ErrNotLocked):
		return "lost"
	// Before what may match the cause of a context as well.
	case errors.As(err, &busy):
		switch {
		case busy.Timeout():
			return "timeout"
		case errors.Is(err, context.Canceled):
			return "canceled"
		case errors.Is(err, flockctx.ErrLocked):
			return "locked"
		}
		return "canceled"
	case errors.Is(err, flockctx.ErrNotLocked), errors.Is(err, locker.ErrLost):
		return "lost"
	case errors.Is(err, fs.ErrClosed):
		return "closed"
	}
	return ""
}

// Mechanism returns what kind of lock e is about: "flock" or "ofd", or "locker" where it is
// a name.
func Mechanism(e flockctx.Event) string {
	if e.Flock == nil {
		return "locker"
	}
	return e.Mechanism.String()
}

// Text returns s, a path or what contains one, without what is not UTF-8. A path may be
// any bytes; exporters drop the whole batch for one, or panic.
func Text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
