package flockctx

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"

	"github.com/flockctx/flockctx/internal/sys"
)

// A Set is several locks that are held together.
type Set struct {
	files []*Flock

	mu     sync.Mutex // guards closed
	closed bool
}

// LockAll locks all files that paths name, each as opts says, or none of them. It
// locks them in the order of their devices and inodes, so two LockAlls never wait
// for each other in a circle, whatever order their paths are in; a LockAll beside
// locks that are held already can. Paths that name one file, as hard links and
// symbolic links do, are one lock. An empty paths is an empty Set. O_TRUNC takes
// effect once all locks are held.
//
// On nil all locks are held, on the files that their paths name now. On an error
// none is: a [*BusyError] for the file that was busy when ctx ended, or an
// [*fs.PathError], as [Flock.Lock] returns them.
func LockAll(ctx context.Context, paths []string, opts *Options) (*Set, error) {
	a := newAttempt(ctx)
	a.once, a.alone = true, true
	if len(paths) == 0 {
		paths = nil
	}
	first := New("", opts) // for errors that are of no path in particular
	if len(paths) > 0 {
		first.at = paths[0]
	}
	if ctx.Err() != nil {
		a.once = false
		a.traced(first, "lock")
		return nil, first.failure("lock", first.opts.Mode, &a, errEnded)
	}
	var s *Set
	busy := first // whose lock was not to be had
	err := untilCurrent(&a, first.opts.Poll, nil, func() (err error) {
		if a.startAgain(); a.panicked != nil {
			return errEnded
		}
		s, busy, err = lockAll(&a, paths, opts)
		return err
	})
	a.once = false
	if err != nil {
		if a.trace.Tracer == nil { // it is not one of those that were waited for
			a.traced(busy, "lock")
		}
		return nil, busy.failure("lock", busy.opts.Mode, &a, err)
	}
	return s, nil
}

// lockAll locks all or nothing. It returns errStale where the order may be another
// one by now, because a path names another file. The handle is that of the error.
func lockAll(a *attempt, paths []string, opts *Options) (s *Set, of *Flock, err error) {
	s = &Set{}
	defer func() {
		if err != nil {
			s.rollBack()
			s = nil
		}
	}()
	named := make([]*Flock, len(paths)) // on the file that each path names
	at := make([]string, len(paths))
	handles := make(map[sys.FileID]*Flock)
	for i, path := range paths {
		l := New(path, opts)
		at[i] = l.at
		if l.opts.invalid != nil {
			return s, l, l.opts.invalid
		}
		if err := l.open(a); err != nil {
			return s, l, err
		}
		l.q = join(l.key())
		l.q.unlock()
		if first := handles[l.desc.ID]; first != nil {
			apart := l.desc.TellsFilesApart() || sameName(first.at, l.at)
			named[i] = first
			l.Close()
			if !apart {
				return s, l, sys.Unsupported("has the same inode number as %s, and the file system does not tell whether the two are one file", first.Name())
			}
			continue
		}
		named[i], handles[l.desc.ID] = l, l
		l.fresh = true
		s.files = append(s.files, l)
	}
	order := slices.Clone(s.files)
	slices.SortFunc(order, func(x, y *Flock) int {
		a, b := x.desc.ID, y.desc.ID
		return cmp.Or(cmp.Compare(a.Dev, b.Dev), cmp.Compare(a.Ino, b.Ino), cmp.Compare(a.Handle, b.Handle))
	})
	for _, l := range order {
		a.gate = nil
		if err := l.lock(a); err != nil {
			return s, l, err
		}
	}
	// The first can have been replaced while the last was waited for.
	for i, l := range named {
		err := l.verify(at[i])
		if err == errStale || sys.IsForgotten(err) {
			return s, l, errStale
		}
		if err != nil {
			return s, l, pathError("stat", paths[i], err)
		}
	}
	for _, l := range s.files {
		if a.ended() {
			return s, l, errEnded
		}
		if err := l.truncate(); err != nil {
			return s, l, err
		}
	}
	return s, nil, nil
}

// sameName reports whether two paths are one but for symbolic links.
func sameName(a, b string) bool {
	x, err := filepath.EvalSymlinks(a)
	if err != nil {
		return false
	}
	y, err := filepath.EvalSymlinks(b)
	return err == nil && x == y
}

// rollBack leaves the files, also with Options.Remove: they are as they were found.
func (s *Set) rollBack() {
	s.each(func(l *Flock) { l.close(false) })
}

// each calls fn for all handles, also after one of which it panics, as a hook may.
func (s *Set) each(fn func(*Flock)) {
	for _, l := range slices.Backward(s.files) {
		defer fn(l)
	}
}

// Files returns the handles of the set, one for each file, in the order in which
// paths named them first. Unlocking or closing one of them is allowed; the others
// stay locked.
func (s *Set) Files() []*Flock {
	if s == nil {
		return nil
	}
	return slices.Clone(s.files)
}

// Close closes all handles of the set, as [Flock.Close] does; those that are closed
// already do not matter. All locks are gone then, also on an error, which joins those of
// the handles. A second Close returns an error that matches [fs.ErrClosed].
func (s *Set) Close() error {
	if s == nil {
		return errUnmade("close")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		path := "(no files)"
		if len(s.files) > 0 {
			path = s.files[0].Name()
		}
		return pathError("close", path, fs.ErrClosed)
	}
	s.closed = true
	var errs []error
	s.each(func(l *Flock) {
		if err := l.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			errs = append(errs, err)
		}
	})
	return errors.Join(errs...)
}
