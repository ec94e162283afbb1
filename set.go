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
// symbolic links do, are one lock. An empty paths is an empty Set.
//
// On nil all locks are held, on the files that their paths name now. On an error
// none is: a [*BusyError] for the file that was busy when ctx ended, or an
// [*fs.PathError], as [Flock.Lock] returns them.
func LockAll(ctx context.Context, paths []string, opts *Options) (*Set, error) {
	a := &attempt{ctx: ctx, once: true}
	if ctx.Err() != nil {
		path := ""
		if len(paths) > 0 {
			path = paths[0]
		}
		return nil, &BusyError{Path: path, Mode: opts.settings().Mode, Err: contextError(ctx)}
	}
	for round := 1; ; round++ {
		s, err := lockAll(a, paths, opts)
		switch {
		case err != errStale:
			return s, err
		case ctx.Err() != nil:
			return nil, &BusyError{Path: paths[0], Mode: opts.settings().Mode, Err: contextError(ctx)}
		case round == maxStale:
			return nil, pathError("lock", paths[0], errUnstable)
		}
		// The order may be another one now.
	}
}

func lockAll(a *attempt, paths []string, opts *Options) (s *Set, err error) {
	s = &Set{}
	defer func() {
		if err != nil {
			s.rollBack()
			s = nil
		}
	}()
	seen := make(map[fileID]bool)
	for _, path := range paths {
		l := New(path, opts)
		if l.opts.invalid != nil {
			return s, pathError("lock", path, l.opts.invalid)
		}
		flag, perm := l.opts.openArgs()
		if l.desc, err = sysOpen(path, flag, perm); err != nil {
			if err = l.openAfter(a, err); err != nil {
				return s, l.failure("open", l.mode, a, err)
			}
		}
		l.q = join(queueKey{l.desc.id, l.opts.Mechanism, l.opts.Start, l.opts.Length})
		l.q.mu.Unlock()
		if seen[l.desc.id] {
			l.Close()
			continue
		}
		seen[l.desc.id] = true
		l.fresh = true
		s.files = append(s.files, l)
	}
	order := slices.Clone(s.files)
	slices.SortFunc(order, func(x, y *Flock) int {
		a, b := x.desc.id, y.desc.id
		return cmp.Or(cmp.Compare(a.dev, b.dev), cmp.Compare(a.ino, b.ino))
	})
	for _, l := range order {
		if err := l.lock(a); err != nil {
			return s, err
		}
	}
	// The first can have been replaced while the last was waited for.
	for _, l := range order[:max(len(order)-1, 0)] {
		if err := l.verify(); err != nil {
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
