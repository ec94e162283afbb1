package flockctx

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// acquireCurrent acquires the lock of the file that the path names in the end.
//
// A busy path can be replaced a few times in a row. One that never names the file
// that opening it gives is on a file system without stable inode numbers, as some
// FUSE file systems are: that must not become a loop without an end, nor a hot one.
func (l *Flock) acquireCurrent(a *attempt, m Mode) error {
	var b *backoff
	for round := 1; ; round++ {
		err := l.acquire(a, m)
		if err != errStale || a.once {
			return err
		}
		switch {
		case a.ctx.Err() != nil:
			return errEnded
		case round == maxStale:
			return errUnstable
		case round < maxStale/10 || a.try:
			continue
		}
		if b == nil {
			b = newBackoff(l.opts.Poll)
		} else {
			b.start()
		}
		err = b.sleep(a.ctx, l.closedChan())
		b.stop()
		if err != nil {
			return err
		}
	}
}

const maxStale = 1000

var errUnstable = unsupported("each of %d times that the file was opened, the path named another one: the file system has no stable inode numbers, or somebody replaces the file all the time", maxStale)

// accept judges and completes a grant, after which sysIdentify said id and err.
func (l *Flock) accept(a *attempt, opened bool, id fileID, err error) error {
	if err != nil || id != l.desc.id {
		return l.stale(id, err)
	}
	if a.ctx.Err() != nil {
		return errEnded
	}
	if opened && !l.borrowed && l.opts.Flag&os.O_TRUNC != 0 {
		if err := l.desc.truncate(l.path); err != nil {
			return pathError("truncate", l.path, err)
		}
	}
	return nil
}

// verify returns errStale unless the path names the file that is open.
func (l *Flock) verify() error {
	if l.borrowed {
		return nil
	}
	id, err := sysIdentify(0, l.path)
	return l.stale(id, err)
}

// stale returns nil if sysIdentify of the path, which returned id and err, says that
// it names the file that is open, errStale if not, or another error.
func (l *Flock) stale(id fileID, err error) error {
	switch {
	case err == nil && id == l.desc.id:
		return nil
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return errStale
	}
	return pathError("stat", l.path, err)
}
