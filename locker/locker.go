// Package locker locks names instead of paths, so that a program can move from one
// machine to several by changing one constructor: [Dir] keeps the names as files,
// the modules locker/etcd and locker/postgres keep them on a server that does the
// consensus, and locker/redis on one that does not; docs/distributed.md compares them.
//
//	l := locker.Dir("/run/locks", nil) // or etcd.New, postgres.New, redis.New
//	err := locker.Do(ctx, l, "nightly-report", flockctx.Exclusive, report)
//
// A lock on a server can be lost while its holder runs: the network fails, the
// server is restarted, an operator deletes a key. So what a [Locker] gives is a
// [Held], whose context ends as soon as ownership can no longer be proved. Where the
// cause is silence, of the network or of a process, it ends before another holder can
// be granted the name. Where the server itself takes the lock away, the news and the
// next grant race. Against that, and against an effect that arrives late, only the
// resource helps, by comparing the [Token]: docs/distributed.md shows how.
package locker

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/flockctx/flockctx"
)

// Mode is [flockctx.Mode]: with whom a lock is shared.
type Mode = flockctx.Mode

// Exclusive and Shared are the modes of flockctx.
const (
	Exclusive = flockctx.Exclusive
	Shared    = flockctx.Shared
)

// A Locker locks names. Its methods are safe for concurrent use. Every grant is one
// of its own: a name that is locked twice through one Locker excludes itself.
//
// A Locker that can say who holds a name is an [Inspector]. One that keeps something
// open between locks, such as connections, is an [io.Closer]: after Close, calls of
// Lock and TryLock, also those that wait, fail with an error that matches
// [io/fs.ErrClosed]; locks that are held stay so until their Unlock, which works as before.
// Close does not wait for them, and can be repeated.
type Locker interface {
	// Lock locks name in mode m, waiting until ctx is done. ctx governs the
	// wait, not the lock, whose own context has ctx's values.
	//
	// On nil the lock is held. If ctx ends first, even together with the grant,
	// the error is a [*flockctx.BusyError] that matches ctx.Err() and
	// [context.Cause](ctx); a ctx that is done on entry always fails so. A place
	// in an engine's queue that is lost with the connection fails with an error
	// that matches [ErrLost]. A mode that the engine lacks matches
	// [errors.ErrUnsupported].
	//
	// A server that cannot be reached, or cannot serve for now, is asked again and
	// again until ctx ends or, where ctx has no deadline, for 10 s. The error then
	// matches [ErrUnavailable], besides ctx.Err() if that was it. Once the call has
	// its place in the engine's queue, ctx alone ends the wait.
	//
	// On any error nothing is held. What the call left on
	// a server frees itself: at once where the server can be reached, else as
	// [Traits].Cleanup says.
	Lock(ctx context.Context, name string, m Mode) (Held, error)

	// TryLock locks name in mode m if that needs no waiting for another holder.
	// ctx limits how long it waits for a server's answer. If another holder has
	// the lock, or is due to get it, the error is a [*flockctx.BusyError] that
	// matches [flockctx.ErrLocked]. All else is as for Lock.
	TryLock(ctx context.Context, name string, m Mode) (Held, error)

	// Traits says what the engine can do.
	Traits() Traits
}

// Held is a lock that was granted. Its methods are safe for concurrent use. A Held
// that is forgotten stays locked until the end of the process.
type Held interface {
	// Context ends when the lock is released or can no longer be proved to be
	// held, with a cause that matches [ErrReleased] or [ErrLost]: before the next
	// grant where the server or the network is silent, and when the news comes
	// where the server has taken the lock away. It has the
	// values of Lock's ctx, and neither its deadline nor its end. Derive from it
	// what must not outlive the lock.
	Context() context.Context

	// Valid returns the instant up to which ownership is proved by now; it moves
	// on while the server answers. ok is false where ownership has no limit.
	// Compare it before an effect that takes a known time, and ask anew each
	// time: comparisons of a time.Time use Go's clock, for which the instant moves
	// away while the machine is suspended. After the lock has ended it lies in the
	// past.
	Valid() (until time.Time, ok bool)

	// Token returns the fencing token of the grant. ok is false where there is
	// none: for local files and for shared locks.
	Token() (t Token, ok bool)

	// Unlock ends Context, then releases the lock, waiting for the server's
	// answer until ctx is done or Traits().Cleanup has passed.
	//
	// On nil the lock was held to the end and is free. An error that matches
	// [ErrLost] says that it was lost before: somebody else may have held it
	// meanwhile. One that matches [ErrUnsure] says that no answer came: the lock
	// may have been lost before, and if not frees itself, see [Traits].
	// Repeated calls return the first answer. Only a local file can stay locked after an error, which is
	// then the system's, an [*io/fs.PathError]; Unlock may then be called again.
	Unlock(ctx context.Context) error
}

// A Token tells a resource which of two holders came later. Resources that remember
// the highest token they have seen, and refuse a lower one of the same Epoch, are
// safe from a holder that goes on after it has lost the lock.
type Token struct {
	// Epoch names the life of the server's data. Tokens of different epochs
	// cannot be compared: the cluster was rebuilt, or a replica was promoted.
	// Not every restore from a backup begins a new one: docs/distributed.md.
	Epoch string

	// N grows with every exclusive grant of a name within an Epoch.
	N uint64
}

// String returns "epoch/n".
func (t Token) String() string { return fmt.Sprintf("%s/%d", t.Epoch, t.N) }

// Traits says what an engine can do.
type Traits struct {
	CanLose   bool // a lock can be lost while its holder runs
	Shared    bool // Shared works
	FIFO      bool // first come, first served, across processes
	Fenced    bool // exclusive grants have a Token
	Deadlocks bool // locks that wait for each other are found, see ErrDeadlock

	// Cleanup is how long others wait, as a rule, for a lock whose holder is gone: it
	// crashed, was cut off, or had no answer to its Unlock. It is no bound, and can be
	// exceeded
	//   - on etcd, where the TTL is below 1.5 times the server's election timeout, which
	//     lengthens it, and where a leader is elected meanwhile, which begins it anew;
	//   - with PostgreSQL's advisory locks, behind a waiter that was cut off: it keeps
	//     its place until the server's system gives up the connection or, where that
	//     does not happen, until it is its turn and a TTL has passed.
	Cleanup time.Duration
}

var (
	// ErrReleased is the cause of the end of [Held].Context after Unlock.
	ErrReleased = errors.New("locker: released")

	// ErrLost says that a lock, or a place in the queue for one, was lost: its
	// ownership could not be proved any more.
	ErrLost = errors.New("locker: lock lost")

	// ErrUnsure says that a release was not answered. The lock frees itself, if it
	// had not been lost before.
	ErrUnsure = errors.New("locker: release not confirmed")

	// ErrUnavailable says that no server of the engine could be reached in time, or
	// none that can serve for now. It is worth trying again.
	ErrUnavailable = errors.New("locker: unavailable")

	// ErrDeadlock says that a Lock waited, through whatever other holders, for a
	// lock under which it was called: with the context of its Held, or with one
	// from Do. Only an engine with Traits().Deadlocks finds that.
	ErrDeadlock = errors.New("locker: deadlock")
)

// MaxName is the length in bytes of the longest name that can be locked.
const MaxName = 1024

// CheckName returns nil if name can be locked, and otherwise an error that says why
// not and matches [syscall.EINVAL] or [syscall.ENAMETOOLONG]. Any bytes will do as
// long as there are between 1 and [MaxName] of them.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("empty name: %w", syscall.EINVAL)
	case len(name) > MaxName:
		return fmt.Errorf("name of %d bytes, the limit is %d: %w", len(name), MaxName, syscall.ENAMETOOLONG)
	}
	return nil
}
