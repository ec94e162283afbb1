package lockedfile

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"

	"github.com/flockctx/flockctx"
)

// A Pending is new content that is being written. The file that it is for stays as
// it is, and locked, until Commit or Close; one of the two must be called. Its
// methods must not be called at the same time.
type Pending struct {
	target *target
	file   *os.File // the new content; nil once it is closed
	info   fs.FileInfo
	name   string // of file, in the target's directory
	err    error  // of a Write: what was written is not whole
	placed bool   // it is the target's by now
	done   bool
}

// Replace locks the file that path names exclusively, waiting until ctx is done, and
// returns a writer for its new content, whatever its size; small pieces are better
// written through a [bufio.Writer]. A symbolic link stays one: the file that it
// leads to is replaced. Where there is no file one is created, with perm (before
// umask), at Commit; until then writers exclude each other by a file beside it.
//
// If ctx ends before the lock is had, the error is a [*flockctx.BusyError] that
// matches ctx.Err(); later its end has no effect. Any other error is an
// [*fs.PathError] with the step that failed. On an error nothing has changed and
// nothing is held.
//
// The caller must be allowed to list and change the directory, and to read the
// file. perm has the nine permission bits only, and lets the owner read.
func Replace(ctx context.Context, path string, perm fs.FileMode) (*Pending, error) {
	t, err := hold(ctx, path)
	if err != nil {
		return nil, err
	}
	if t.old != nil {
		perm = 0o600 // until it gets those of the old one: nobody else reads a part
	}
	p := &Pending{target: t, name: t.mark + "-" + rand.Text()}
	t.note(p.name)
	p.file, err = t.dir.OpenFile(p.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err == nil {
		p.info, err = p.file.Stat()
	}
	if err == nil {
		err = t.lockNext(ctx, p.name, p.info)
	}
	if err != nil {
		p.Close()
		if _, busy := err.(*flockctx.BusyError); busy {
			return nil, t.lockError(err)
		}
		return nil, pathError("create", path, err)
	}
	return p, nil
}

// Write adds b to the new content. After an error, an [*fs.PathError], Commit fails
// too. After Commit or Close the error matches [fs.ErrClosed].
func (p *Pending) Write(b []byte) (int, error) {
	if p.done {
		return 0, pathError("write", p.target.path, fs.ErrClosed)
	}
	n, err := p.file.Write(b)
	if err != nil {
		err = pathError("write", p.target.path, err)
		p.err = err
	}
	return n, err
}

// Commit puts the new content into place and releases the lock.
//
// On nil it is there and survives a crash of the machine. With a [*DurabilityError]
// it is there. On any other error, an [*fs.PathError], the file is as it was, or does
// not exist where it did not, and the new content is gone: a Write that failed, what
// the disk or a quota refuses, or somebody without the lock who replaced, created or
// removed the file meanwhile. After Commit or Close the error matches [fs.ErrClosed].
func (p *Pending) Commit() error {
	err := p.commit()
	if err == errChanged {
		return pathError("commit", p.target.path, err)
	}
	return err
}

// commit is Commit that may return errChanged as it is.
//
// The order of the steps is the promise: what belongs to the file is set, then
// synced, then the file closed (a program must not be open for writing when somebody
// runs it, and some file systems report a full disk only now), then renamed, then the
// directory synced.
func (p *Pending) commit() error {
	t := p.target
	if p.done {
		return pathError("commit", t.path, fs.ErrClosed)
	}
	defer p.Close()
	if p.err != nil {
		return p.err
	}
	if t.old != nil {
		if err := keep(t.old, p.file); err != nil {
			return pathError("keep the attributes of", t.path, err)
		}
	}
	if err := p.file.Sync(); err != nil {
		return pathError("sync", t.path, err)
	}
	err := p.file.Close()
	p.file = nil
	if err != nil {
		return pathError("close", t.path, err)
	}
	if err := t.publish(p.name, p.info); err != nil {
		return err
	}
	p.placed = true
	if err := t.sync(); err != nil {
		return &DurabilityError{Path: t.path, Err: cause(err)}
	}
	return nil
}

// Close drops the new content, unless Commit was called before, and releases the
// lock: nothing has happened. After Commit or Close it does nothing and returns nil,
// so that it can be deferred. An error, an [*fs.PathError], says that the new
// content, which nobody uses, could not be removed; the next writer will try again.
func (p *Pending) Close() error {
	if p.done {
		return nil
	}
	p.done = true
	if p.file != nil {
		p.file.Close()
	}
	t := p.target
	err := t.dir.Remove(p.name) // after a rename it is not there
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	// The note goes last of what it tells of, and while nobody else can have made his:
	// there is still the lock, or that of the new content, which has the name.
	left := err != nil
	if p.placed && lockItself {
		left = t.unlock() || left
	}
	if !left {
		t.forget()
	}
	t.release()
	if err != nil {
		return pathError("remove the new content of", t.path, err)
	}
	return nil
}
