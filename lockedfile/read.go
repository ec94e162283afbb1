package lockedfile

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/flockctx/flockctx"
)

// Read returns the content of the file that path names, under a shared lock: it
// waits, until ctx is done, for a writer that has the file locked.
//
// If ctx ends first the error is a [*flockctx.BusyError] that matches ctx.Err().
// Any other is an [*fs.PathError]; where there is no file it matches
// [fs.ErrNotExist], and none is created.
//
// What Read returns was written as a whole, and survives a crash of the machine, if a
// writer of this package wrote it that was not killed, and got no [*DurabilityError],
// between the rename and the sync of the directory.
func Read(ctx context.Context, path string) ([]byte, error) {
	f, release, err := holdShared(ctx, path)
	if err != nil {
		return nil, err
	}
	defer release()
	return content(path, f)
}

// holdShared returns the file that path leads to, under a shared lock until release
// is called.
func holdShared(ctx context.Context, path string) (f *os.File, release func(), err error) {
	if !lockItself {
		return holdSharedMark(ctx, path)
	}
	l, err := lockFile(ctx, path, flockctx.Shared)
	if err != nil {
		return nil, nil, err
	}
	return l.File(), func() { l.Close() }, nil
}

// holdSharedMark is holdShared where the mark is locked. Where there is none, nobody
// is writing, and a writer that begins now has not begun before.
func holdSharedMark(ctx context.Context, path string) (f *os.File, release func(), err error) {
	for range maxRaces {
		t := &target{path: path}
		if err = t.openShared(ctx); err == nil {
			return t.old, t.release, nil
		}
		t.release()
		if err != errRace {
			return nil, nil, err
		}
	}
	return nil, nil, pathError("lock", path, errChanged)
}

// openShared locks the mark, if there is one, and opens the file.
func (t *target) openShared(ctx context.Context) error {
	if _, err := t.find(); err != nil {
		return err
	}
	l, err := flockctx.Lock(ctx, t.inDir(t.mark), &flockctx.Options{Mode: flockctx.Shared, Flag: os.O_RDWR})
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return t.lockError(err)
	}
	t.lock = l
	t.old, err = t.dir.Open(t.name)
	if err == nil {
		return nil
	}
	if _, merr := lstat(t.dir, t.mark); missing && merr == nil {
		return errRace // a writer has begun, who keeps others from it
	}
	return pathError("open", t.path, err)
}

// content reads all of f, never nil.
func content(path string, f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, pathError("stat", path, err)
	}
	var b bytes.Buffer
	b.Grow(int(st.Size()) + bytes.MinRead)
	if _, err := b.ReadFrom(f); err != nil {
		return nil, pathError("read", path, err)
	}
	return b.Bytes(), nil
}
