package flockctx

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
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
	for round := 1; ; round++ {
		err := try()
		if err != errStale {
			return err
		}
		a.gate = nil // it was that of another file
		switch {
		case a.ctx.Err() != nil:
			return errEnded
		case round == maxStale:
			return errUnstable
		case round < maxStale/10 || a.try:
			continue
		}
		if b == nil {
			b = newBackoff(poll)
		} else {
			b.start()
		}
		err = b.sleep(a.ctx, l.closedFor(a))
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

const maxStale = 1000

var errUnstable = unsupported("each of %d times that the file was opened, the path named another one: the file system has no stable inode numbers, or somebody replaces the file all the time", maxStale)

// accept judges and completes a grant, after which sysIdentify said id and err.
func (l *Flock) accept(a *attempt, opened bool, id fileID, err error) error {
	if err != nil || id != l.desc.id {
		return l.stale(l.path, id, err)
	}
	if a.ctx.Err() != nil {
		return errEnded
	}
	if opened && !a.once { // LockAll truncates when it has all
		return l.truncate()
	}
	return nil
}

// truncate makes up for the O_TRUNC that was kept back when the file was opened.
func (l *Flock) truncate() error {
	if l.borrowed || l.opts.Flag&os.O_TRUNC == 0 {
		return nil
	}
	if err := l.desc.truncate(l.path); err != nil {
		return pathError("truncate", l.path, err)
	}
	return nil
}

// verify returns errStale unless path, that of the handle or another one, names the
// file that is open.
func (l *Flock) verify(path string) error {
	if l.borrowed {
		return nil
	}
	id, err := sysIdentify(0, path)
	return l.stale(path, id, err)
}

// stale returns nil if sysIdentify of path, which returned id and err, says that it
// names the file that is open, errStale if not, or another error.
func (l *Flock) stale(path string, id fileID, err error) error {
	switch {
	case err == nil && id == l.desc.id:
		return nil
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return errStale
	}
	return pathError("stat", path, err)
}
