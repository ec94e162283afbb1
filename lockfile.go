package flockctx

import (
	"context"
	"os"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/sys"
)

// LockFile locks the open file f, waiting until ctx is done. It is [Lock] for a
// file that the caller opened, with these differences: f stays the caller's, and
// neither Unlock nor Close of the handle closes it; the lock is on f whatever
// path names it, so nothing is verified after the grant; Flag, ReadOnly, Perm, ExactPerm,
// Root and Remove of opts have no effect, and Fair is refused; f may also be a device or
// a pipe, where the system can lock those, as Linux can.
//
// The lock belongs to f's open file description, of which the kernel has one lock.
// Exclusive handles on the same one take turns like any others; where another handle
// has it already, shared, or for a byte range that overlaps, the second one fails with
// [errors.ErrUnsupported]: open the file once more for that.
//
// Closing f while the lock is held releases it, unless a child process inherited f or a
// duplicate of f is open; closing it while LockFile waits ends that with [fs.ErrClosed].
// f must not be the File of another handle, whose lock this one would share. A lock that
// f has already, taken without a handle or inherited, the kernel converts; where the new
// one is busy, flock(2) drops the old one. Duplicates of one description are recognized
// on Linux only, and there not where kcmp(2) is forbidden.
func LockFile(ctx context.Context, f *os.File, opts *Options) (*Flock, error) {
	a := newAttempt(ctx)
	return lockFile(&a, f, opts)
}

// TryLockFile locks the open file f if that needs no waiting: [LockFile] with the
// errors of [TryLock].
func TryLockFile(f *os.File, opts *Options) (*Flock, error) {
	a := newTry()
	return lockFile(&a, f, opts)
}

func lockFile(a *attempt, f *os.File, opts *Options) (*Flock, error) {
	if f == nil {
		return nil, pathError("lock", "", os.ErrInvalid)
	}
	ended := a.ctx.Err() != nil
	l := borrowed(f, opts)
	err := error(errEnded)
	switch {
	case ended:
	case l.opts.Fair:
		err = sys.Unsupported("Fair needs a file that the handle has opened itself")
	default:
		if l.desc, err = sys.Borrow(f); err == nil && l.opts.Mechanism == OFD {
			err = l.desc.CanLockRanges()
		}
	}
	if err != nil {
		a.traced(l, "lock")
		return nil, l.failure("lock", l.opts.Mode, a, err)
	}
	if err := l.lock(a); err != nil {
		return nil, err
	}
	return l, nil
}

// UnlockFile releases the lock of opts.Mechanism (and of its byte range) that f's
// open file description holds, whoever took it: for a descriptor that was
// inherited with its lock. Where there is no lock it does nothing. A lock that a
// handle of this process holds is released by that handle, not with UnlockFile.
// On an error, an [*fs.PathError], nothing has changed.
func UnlockFile(f *os.File, opts *Options) error {
	if f == nil {
		return pathError("unlock", "", os.ErrInvalid)
	}
	l := borrowed(f, opts)
	err := l.opts.invalid
	if err == nil {
		l.desc, err = sys.Borrow(f)
	}
	if err == nil {
		err = l.desc.Lock(l.request(sys.Unlock, Exclusive))
	}
	if err != nil {
		return pathError("unlock", l.Name(), err)
	}
	return nil
}

// borrowed makes a handle on f.
func borrowed(f *os.File, opts *Options) *Flock {
	l := &Flock{at: f.Name(), opts: opts.settings(), borrowed: true}
	l.mode = gate.Mode(l.opts.Mode)
	return l
}

var errShared = sys.Unsupported("another handle has the same open file locked: open the file once more for this one")

// sharesOpenFile returns errShared where another handle inside is on the same open file:
// shared like this one, or in a byte range that overlaps this one's. The kernel would
// take this lock for a change of the other, and the first release for both. Of two that
// come at once, at least one is refused.
func (l *Flock) sharesOpenFile() error {
	k, s := l.q.key, l.q.shard
	var others []*os.File
	s.mu.Lock()
	for q := s.queues; q != nil; q = q.next {
		if q.key.id != k.id || q.key.mechanism != k.mechanism || !q.key.overlaps(k) {
			continue
		}
		for h := q.holders; h != nil; h = h.nextHolder {
			if h.borrowed && h != l {
				others = append(others, h.desc.Made()) // all else of desc is h's alone
			}
		}
	}
	s.mu.Unlock()
	for _, f := range others {
		if l.desc.Same(f) {
			return errShared
		}
	}
	return nil
}
