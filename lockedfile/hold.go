package lockedfile

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/flockctx/flockctx"
)

// A target is the file that a path leads to, held for its replacement: no other
// writer of this package is at it until release.
//
//	state of the target          the lock is on             who else gets it
//	there is a file              the file                   who waited for the file that was replaced
//	                                                        starts again, on the new one (flockctx)
//	there is none                the mark, an empty file    the next one that finds no file; one that
//	                             beside it                  finds it created starts again, on the file
//	Windows, either              the mark                   as above
//
// A file cannot be locked before it is there, and to create it empty would show
// others a part. So the mark stands for the name: it is there while somebody creates
// the file, and removed by its holder.
//
// races and their winners:
//
//	the path leads elsewhere, or the file is      hold looks, once it has the lock: errRace, from the
//	created, while hold waits                     beginning
//	an outsider replaces, removes or creates the  publish looks again and refuses (errChanged); who does
//	file while it is held                         it after that look, within microseconds, loses what
//	                                              he wrote. A file created is never replaced: link(2)
//	two writers, after an outsider has replaced   the second one removes the content that the first one
//	the file under the first one                  has in work, so that its rename fails: errChanged
//	a waiter for the mark, and its removal        flockctx: the waiter starts again, with a new mark
//	a killed holder                               the kernel drops the lock; the next one sweeps
//	                                              before it adds names of its own
type target struct {
	path   string          // as given by the caller
	dir    *os.Root        // the directory that path leads to
	folder *os.File        // the same, to list and to sync it
	name   string          // of the file in dir, where it is no symbolic link
	mark   string          // how all names begin that this package uses for it in dir
	lock   *flockctx.Flock // on the file, or on the file named mark
	marked bool            // on that
	old    *os.File        // the file; nil where there is none
	info   fs.FileInfo     // of old
}

// maxRaces bounds how often hold and Update begin again, for paths that never lead to
// the file that opening them gives, such as some of /proc.
const maxRaces = 1000

// hold locks the file that path leads to.
func hold(ctx context.Context, path string) (*target, error) {
	for range maxRaces {
		t := &target{path: path}
		err := t.holdFile(ctx)
		if err == nil {
			replaced.Load()
			return t, nil
		}
		t.release()
		if err != errRace {
			return nil, err
		}
	}
	return nil, pathError("lock", path, errChanged)
}

// replaced orders, for the Go memory model, what a goroutine did before it gave a
// path to another file, and what the next holder does, whose lock is that file's.
var replaced atomic.Int64

// holdFile locks the file, or the mark where that is to be locked.
func (t *target) holdFile(ctx context.Context) (err error) {
	if !lockItself {
		return t.holdMark(ctx)
	}
	t.lock, err = flockctx.Lock(ctx, t.path, &flockctx.Options{Flag: os.O_RDWR})
	if isRefusal(err) { // a file that is read-only, or runs, can be replaced
		t.lock, err = flockctx.Lock(ctx, t.path, &flockctx.Options{Flag: readOnly})
	}
	if errors.Is(err, fs.ErrNotExist) {
		return t.holdMark(ctx)
	}
	if err != nil {
		return err
	}
	if err := t.keepOld(t.lock.File()); err != nil {
		return err
	}
	info, err := t.find()
	if err != nil {
		return err
	}
	if info == nil || !os.SameFile(info, t.info) {
		return errRace
	}
	return nil
}

// holdMark locks the mark.
func (t *target) holdMark(ctx context.Context) error {
	info, err := t.find()
	if err != nil {
		return err
	}
	if info != nil && lockItself {
		return errRace
	}
	// Not by the Root, which flockctx does not take: so it is compared. Others must
	// be able to open it, in a directory in which they may create the file.
	t.lock, err = flockctx.Lock(ctx, t.dir.Name()+string(os.PathSeparator)+t.mark, &flockctx.Options{Perm: 0o644})
	if err != nil {
		return t.lockError(err)
	}
	locked, err := t.lock.File().Stat()
	if err != nil {
		return pathError("stat", t.path, err)
	}
	named, err := lstat(t.dir, t.mark)
	if err != nil || !os.SameFile(locked, named) {
		return errRace
	}
	t.marked = true
	if info, err = lstat(t.dir, t.name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return pathError("stat", t.path, err)
	}
	if lockItself || info.Mode()&fs.ModeSymlink != 0 {
		return errRace
	}
	f, err := t.dir.Open(t.name)
	if err != nil {
		return pathError("open", t.path, err)
	}
	return t.keepOld(f)
}

// lockError names the caller's path instead of the mark.
func (t *target) lockError(err error) error {
	if busy, ok := err.(*flockctx.BusyError); ok {
		b := *busy
		b.Path = t.path
		return &b
	}
	if pe, ok := err.(*fs.PathError); ok {
		return pathError(pe.Op, t.path, err)
	}
	return err
}

// keepOld notes f as the file to be replaced.
func (t *target) keepOld(f *os.File) (err error) {
	t.old = f
	if t.info, err = f.Stat(); err != nil {
		return pathError("stat", t.path, err)
	}
	if t.info.IsDir() {
		return pathError("replace", t.path, syscall.EISDIR)
	}
	return nil
}

// find sets dir, folder, name and mark, and returns what the name is of, or nil where
// there is no file.
func (t *target) find() (info fs.FileInfo, err error) {
	if t.dir, t.name, info, err = find(t.path); err != nil {
		return nil, err
	}
	t.mark = markOf(t.name)
	if t.folder, err = t.dir.Open("."); err != nil {
		return nil, pathError("open the directory of", t.path, err)
	}
	return info, nil
}

// unchanged returns errChanged unless the name is still of the file that was locked, or
// still of none.
func (t *target) unchanged() error {
	info, err := lstat(t.dir, t.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if t.old == nil {
			return nil
		}
	case err != nil:
		return pathError("stat", t.path, err)
	case t.old != nil && os.SameFile(info, t.info):
		return nil
	}
	return errChanged
}

// release gives up what hold has got, as far as it did.
func (t *target) release() {
	replaced.Add(1)
	if t.marked {
		t.dir.Remove(t.mark) // if it cannot be, it is empty, and found by the next one
	}
	if t.old != nil && !lockItself { // else it is the lock's
		t.old.Close()
	}
	if t.lock != nil {
		t.lock.Close()
	}
	if t.folder != nil {
		t.folder.Close()
	}
	if t.dir != nil {
		t.dir.Close()
	}
}

// isRefusal reports whether err may be that of opening for writing only.
func isRefusal(err error) bool {
	_, ok := err.(*fs.PathError)
	return ok && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EISDIR)
}

// holdShared returns the file that path leads to, under a shared lock until release
// is called.
func holdShared(ctx context.Context, path string) (f *os.File, release func(), err error) {
	if !lockItself {
		return holdSharedMark(ctx, path)
	}
	l, err := flockctx.Lock(ctx, path, &flockctx.Options{Mode: flockctx.Shared, Flag: readOnly})
	if err != nil {
		return nil, nil, err
	}
	replaced.Load()
	return l.File(), func() { l.Close() }, nil
}

// holdSharedMark is holdShared where the mark is locked. Where there is none, nobody
// is writing, and a writer that begins now has not begun before.
func holdSharedMark(ctx context.Context, path string) (f *os.File, release func(), err error) {
	for range maxRaces {
		t := &target{path: path}
		if _, err = t.find(); err == nil {
			name := t.dir.Name() + string(os.PathSeparator) + t.mark
			t.lock, err = flockctx.Lock(ctx, name, &flockctx.Options{Mode: flockctx.Shared, Flag: os.O_RDWR})
			if errors.Is(err, fs.ErrNotExist) {
				t.lock, err = nil, nil
			}
		}
		if err == nil {
			t.old, err = t.dir.Open(t.name)
		}
		if err == nil {
			replaced.Load()
			return t.old, t.release, nil
		}
		t.release()
		if err != errRace {
			return nil, nil, t.lockError(err)
		}
	}
	return nil, nil, pathError("lock", path, errChanged)
}

// readOnly opens for reading, and creates nothing. (Zero, which O_RDONLY is, would be
// flockctx's default; it sets this flag in any case.)
const readOnly = os.O_RDONLY | syscall.O_CLOEXEC
