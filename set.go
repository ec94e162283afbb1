package flockctx

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
)

// A Set is several locks that are held together.
type Set struct {
	files []*Flock

	mu   sync.Mutex // guards open
	open []*Flock   // those that Close has not closed yet
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
	a := &attempt{ctx: ctx, once: true, alone: true}
	done := func() (*Set, error) {
		path := ""
		if len(paths) > 0 {
			path = paths[0]
		}
		l := New(path, opts)
		return nil, l.failure("lock", l.mode, a, errEnded)
	}
	if ctx.Err() != nil {
		return done()
	}
	var s *Set
	err := untilCurrent(a, opts.settings().Poll, nil, func() (err error) {
		s, err = lockAll(a, paths, opts)
		return err
	})
	switch err {
	case nil:
		return s, nil
	case errEnded:
		return done()
	case errUnstable:
		return nil, pathError("lock", paths[0], err)
	}
	return nil, err
}

// lockAll locks all or nothing. It returns errStale where the order may be another
// one by now, because a path names another file.
func lockAll(a *attempt, paths []string, opts *Options) (s *Set, err error) {
	s = &Set{}
	defer func() {
		if err != nil {
			s.rollBack()
			s = nil
		}
	}()
	named := make([]*Flock, len(paths)) // on the file that each path names
	handles := make(map[fileID]*Flock)
	for i, path := range paths {
		l := New(path, opts)
		if l.opts.invalid != nil {
			return s, pathError("lock", path, l.opts.invalid)
		}
		if err := l.open(a); err != nil {
			return s, l.failure("open", l.mode, a, err)
		}
		l.q = join(queueKey{l.desc.id, l.opts.Mechanism, l.opts.Start, l.opts.Length})
		l.q.mu.Unlock()
		if first := handles[l.desc.id]; first != nil {
			named[i] = first
			l.Close()
			continue
		}
		named[i], handles[l.desc.id] = l, l
		l.fresh = true
		s.files = append(s.files, l)
	}
	order := slices.Clone(s.files)
	slices.SortFunc(order, func(x, y *Flock) int {
		a, b := x.desc.id, y.desc.id
		return cmp.Or(cmp.Compare(a.dev, b.dev), cmp.Compare(a.ino, b.ino))
	})
	for _, l := range order {
		a.gate = nil
		if err := l.lock(a); err != nil {
			return s, err
		}
	}
	// The first can have been replaced while the last was waited for.
	for i, l := range named {
		if err := l.verify(paths[i]); err != nil {
			return s, err
		}
	}
	if a.ctx.Err() != nil {
		return s, errEnded
	}
	for _, l := range s.files {
		if err := l.truncate(); err != nil {
			return s, err
		}
	}
	s.open = slices.Clone(s.files)
	return s, nil
}

// rollBack leaves the files, also with Options.Remove: they are as they were found.
func (s *Set) rollBack() {
	for _, l := range s.files {
		l.abandon()
	}
}

// Files returns the handles of the set, one for each file, in the order in which
// paths named them first. Unlocking or closing one of them is allowed; the others
// stay locked.
func (s *Set) Files() []*Flock { return slices.Clone(s.files) }

// Close closes all handles of the set, as [Flock.Close] does; those that are closed
// already do not matter. On nil all locks are gone. On an error, which joins those
// of the handles, the locks of those handles are still held and Close may be called
// again. After a Close that returned nil, Close returns [fs.ErrClosed].
func (s *Set) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil && len(s.files) > 0 {
		return pathError("close", s.files[0].path, fs.ErrClosed)
	}
	var left []*Flock
	var errs []error
	for _, l := range s.open {
		if err := l.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			left = append(left, l)
			errs = append(errs, err)
		}
	}
	s.open = left
	return errors.Join(errs...)
}
