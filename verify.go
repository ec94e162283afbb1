package flockctx

import (
	"os"

	"github.com/flockctx/flockctx/internal/sys"
)

// untilCurrent calls try again as long as it says that the path names another file
// by now.
//
// A busy path can be replaced a few times in a row. One that never names the file
// that opening it gives is on a file system without stable inode numbers, as some
// FUSE file systems are: that must not become a loop without an end, nor a hot one.
//
// l is the handle, or nil for an attempt on several.
func untilCurrent(a *attempt, poll Backoff, l *Flock, try func() error) error {
	var b *backoff
	for a.rounds = 1; ; a.rounds++ {
		a.gate = nil // it is that of another file, by now maybe of somebody else
		err := try()
		if err != errStale {
			return err
		}
		switch {
		case a.ended():
			return errEnded
		case a.rounds == maxStale:
			return errUnstable
		case a.rounds < tellingRounds || a.try:
			continue
		}
		a.waits()
		if b == nil {
			b = newBackoff(poll)
		} else {
			b.start()
		}
		err = b.sleep(a, l.closedFor(a), nil)
		b.stop()
		if err != nil {
			return err
		}
	}
}

// acquireCurrent acquires the lock of the file that the path names in the end, after
// a first try found that it named another one.
func (l *Flock) acquireCurrent(a *attempt, m Mode) error {
	return untilCurrent(a, l.opts.Poll, l, func() error { return l.acquire(a, m) })
}

// outdated reports whether the lock that was found taken is that of a file which the handle
// has kept open, unlike one that was opened for this call, and which the path does not name
// any more. Before a wait only a local file is looked at: elsewhere the look may hang, and
// the wait has to end with the context.
func (l *Flock) outdated(a *attempt, opened bool) bool {
	return !opened && (a.try || l.desc.IsLocal()) && l.verify(l.at) == errStale
}

const (
	maxStale = 1000

	// tellingRounds are enough for the error at the end of the context to say so, and
	// for pauses between the rounds.
	tellingRounds = maxStale / 10
)

var errUnstable = sys.Unsupported("each of at least %d times that the file was opened, the path named another one: the file system has no stable inode numbers, or somebody replaces the file all the time", tellingRounds)

// accept judges and completes a grant, after which err is what the look at the path said.
func (l *Flock) accept(a *attempt, opened bool, err error) error {
	if err == errStale {
		return err
	}
	if err != nil {
		return pathError("stat", l.Name(), err)
	}
	if a.ended() {
		return errEnded
	}
	if opened && !a.once { // LockAll truncates when it has all
		if err := l.truncate(); err != nil {
			return err
		}
	}
	if a.trace.Tracer != nil {
		return a.tellGrant(l)
	}
	return nil
}

// verify is the look at path, which is the handle's or another one.
func (l *Flock) verify(path string) error {
	switch {
	case l.borrowed:
		return nil
	case l.opts.Root != nil:
		return l.desc.VerifyIn(l.opts.Root, path)
	}
	return l.desc.Verify(path)
}

// truncate makes up for the O_TRUNC that was kept back when the file was opened.
func (l *Flock) truncate() error {
	if l.borrowed || l.opts.Flag&os.O_TRUNC == 0 {
		return nil
	}
	if err := l.desc.Truncate(l.Name()); err != nil {
		return pathError("truncate", l.Name(), err)
	}
	return nil
}
