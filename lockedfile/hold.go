package lockedfile

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/flockctx/flockctx"
)

// A target is the file that a path leads to, held for its replacement: no other
// writer of this package is at it until release.
//
//	state of the target          the lock is on             who else gets it
//	there is a file              the file, and from the     who waited for the file that was replaced
//	                             rename on the new one too  starts again, on the new one (flockctx)
//	there is none                the mark, an empty file    the next one that finds no file; one that
//	                             beside it, and the new     finds it created starts again, on the file
//	                             one as above
//	Windows, either              the mark                   as above
//
// A file cannot be locked before it is there, and to create it empty would show
// others a part. So the mark stands for the name: it is there while somebody creates
// the file, and removed by its holder.
//
// The new content is locked before it has the name. So there is no instant at which the
// name is of a file that nobody has locked, until the writer is done: who gets the lock
// finds a content that is on the disk, and nothing of the writer before.
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
//	a killed holder                               the kernel drops the locks; the next one removes
//	                                              what is left (note) before it adds names of its own
type target struct {
	path   string          // as given by the caller
	dir    *os.Root        // the directory that path leads to
	folder *os.File        // the same, to list and to sync it
	name   string          // of the file in dir, where it is no symbolic link
	mark   string          // how all names begin that this package uses for it in dir
	lock   *flockctx.Flock // on the file, or on the file named mark
	next   *flockctx.Flock // on the new content
	marked bool            // lock is on the file named mark
	noted  bool            // there is a note of the new content
	old    *os.File        // the file; nil where there is none
	info   fs.FileInfo     // of old
}

// maxRaces bounds how often hold and Update begin again, for paths that never lead to
// the file that opening them gives, such as some of /proc.
const maxRaces = 1000

// hold locks the file that path leads to.
func hold(ctx context.Context, path string) (*target, error) {
	for range maxRaces {
		if ctx.Err() != nil { // which wins over what the file system says
			_, err := flockctx.Lock(ctx, path, nil)
			return nil, err
		}
		t := &target{path: path}
		err := t.hold(ctx)
		if err == nil {
			return t, nil
		}
		t.release()
		if err != errRace {
			return nil, err
		}
	}
	return nil, pathError("lock", path, errChanged)
}

func (t *target) hold(ctx context.Context) error {
	info, err := t.find()
	if err != nil {
		return err
	}
	if info != nil && info.IsDir() {
		return pathError("replace", t.path, syscall.EISDIR)
	}
	if info == nil {
		// The system may see a file all the same, through a link that only it can
		// follow, or forbid to follow one.
		if _, err := os.Stat(t.path); err == nil {
			return errRace
		} else if !errors.Is(err, fs.ErrNotExist) {
			return pathError("stat", t.path, err)
		}
	}
	if info == nil || !lockItself {
		return t.holdMark(ctx)
	}
	t.lock, err = lockFile(ctx, t.path, flockctx.Exclusive)
	if errors.Is(err, fs.ErrNotExist) {
		return errRace
	}
	if err != nil {
		return err
	}
	if err := t.keepOld(t.lock.File()); err != nil {
		return err
	}
	if err = t.unchanged(); err == errChanged {
		return errRace
	}
	return err
}

// lockFile locks the file at path, which must be there. It is opened for reading only:
// who may not write it may still replace it, and while somebody has a program open for
// writing nobody can run it. A network file system may refuse to lock such a file.
func lockFile(ctx context.Context, path string, mode flockctx.Mode) (*flockctx.Flock, error) {
	l, err := flockctx.Lock(ctx, path, &flockctx.Options{Mode: mode, Flag: readOnly})
	if pe, ok := err.(*fs.PathError); ok && pe.Op == "lock" && mode == flockctx.Exclusive {
		return flockctx.Lock(ctx, path, &flockctx.Options{Mode: mode, Flag: os.O_RDWR})
	}
	return l, err
}

// lockNext locks the new content, of which info is, and of which nobody else knows yet.
func (t *target) lockNext(ctx context.Context, name string, info fs.FileInfo) (err error) {
	if !lockItself { // the mark is locked all the time
		return nil
	}
	if t.next, err = lockFile(ctx, t.inDir(name), flockctx.Exclusive); err != nil {
		return err
	}
	locked, err := t.next.File().Stat()
	if err == nil && !os.SameFile(locked, info) {
		err = errChanged
	}
	return err
}

// inDir returns the path of a name in the directory, for flockctx, which takes no Root.
// What it leads to is compared with what the Root has.
func (t *target) inDir(name string) string {
	return t.dir.Name() + string(os.PathSeparator) + name
}

// holdMark locks the mark. Others must be able to open it, in a directory in which they
// may create the file.
func (t *target) holdMark(ctx context.Context) (err error) {
	t.lock, err = flockctx.Lock(ctx, t.inDir(t.mark), &flockctx.Options{Perm: 0o644, Remove: true})
	if err != nil {
		return t.lockError(err)
	}
	t.marked = true
	locked, err := t.lock.File().Stat()
	if err != nil {
		return pathError("stat", t.path, err)
	}
	named, err := lstat(t.dir, t.mark)
	if err != nil || !os.SameFile(locked, named) {
		return errRace
	}
	info, err := lstat(t.dir, t.name)
	if errors.Is(err, fs.ErrNotExist) {
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
	if t.old != nil && !lockItself { // else it is the lock's
		t.old.Close()
	}
	t.unlock()
	if t.next != nil {
		t.next.Close()
	}
	if t.folder != nil {
		t.folder.Close()
	}
	if t.dir != nil {
		t.dir.Close()
	}
}

// unlock releases the lock, but not that of the new content, and removes the mark. It
// reports whether a mark is left that can be removed later.
func (t *target) unlock() (left bool) {
	l := t.lock
	if l == nil {
		return false
	}
	t.lock = nil
	err := l.Close()
	if err != nil { // the mark may still be there, and locked
		l.Unlock()
		l.Close()
	}
	return t.marked && err != nil && !errors.Is(err, fs.ErrPermission)
}

// readOnly opens for reading, and creates nothing. (Zero, which O_RDONLY is, would be
// flockctx's default; it sets this flag in any case.)
const readOnly = os.O_RDONLY | syscall.O_CLOEXEC
