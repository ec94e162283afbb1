package lockedfile

import (
	"context"
	"io/fs"
)

// Write replaces the content of the file that path names with data, under an
// exclusive lock, or creates the file with perm (before umask). It is [Replace], a
// write and a Commit; see there for what holds when it returns.
func Write(ctx context.Context, path string, data []byte, perm fs.FileMode) error {
	return update(ctx, path, perm, func(*target) ([]byte, error) { return data, nil })
}

// Update calls fn with the content of the file that path names, and replaces it with
// what fn returns, all under one exclusive lock: no Update of any process on the
// file is lost, and no two calls of fn for it overlap. Where there is no file old
// is nil, and Update creates it with perm (before umask); else perm is not used,
// and old is not nil even where it is empty.
//
// ctx governs the waiting for the lock only. If it ends first the error is a
// [*flockctx.BusyError] that matches ctx.Err(), and fn was not called. fn's own
// error is returned as it is. With any other error that is not a
// [*DurabilityError], an [*fs.PathError], the file is untouched too, and where there
// was none there is none.
//
// fn is called again, with the content of then, if somebody who did not hold the
// lock created, replaced or removed the file meanwhile. It must not use this package
// on the same file, for whose lock it would wait.
//
// The calls of fn for one file, by goroutines of this process, are ordered in the
// terms of the Go memory model: what they share needs no other lock.
func Update(ctx context.Context, path string, perm fs.FileMode, fn func(old []byte) ([]byte, error)) error {
	return update(ctx, path, perm, func(t *target) ([]byte, error) {
		if t.old == nil {
			return fn(nil)
		}
		old, err := content(path, t.old)
		if err != nil {
			return nil, err
		}
		return fn(old)
	})
}

// update replaces the file with what fn returns, which it calls under the lock.
func update(ctx context.Context, path string, perm fs.FileMode, fn func(*target) ([]byte, error)) error {
	for range maxRaces {
		if err := tryUpdate(ctx, path, perm, fn); err != errChanged {
			return err
		}
	}
	return pathError("commit", path, errChanged)
}

func tryUpdate(ctx context.Context, path string, perm fs.FileMode, fn func(*target) ([]byte, error)) error {
	p, err := Replace(ctx, path, perm)
	if err != nil {
		return err
	}
	defer p.Close() // also where fn panics
	data, err := fn(p.target)
	if err != nil {
		return err
	}
	if _, err := p.Write(data); err != nil {
		return err
	}
	return p.commit()
}
