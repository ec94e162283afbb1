package flock

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/flockctx/flockctx"
)

// Lock locks the file exclusive, and waits as long as that takes.
//
// On nil the calling goroutine holds the lock; so it is at once if it held it before.
// A shared lock of the goroutine becomes exclusive: like flock(2), Lock may let others
// in before, and what was read under the old lock may have changed. On an error, an
// [*fs.PathError], it does not hold the lock exclusive; RLocked says whether a shared
// one from before is left. It matches [errors.ErrUnsupported] where the platform or the
// file system cannot lock.
func (f *Flock) Lock() error {
	return f.acquire(context.Background(), flockctx.Exclusive, false)
}

// RLock locks the file shared, as Lock does exclusive. An exclusive lock of the
// goroutine becomes shared.
func (f *Flock) RLock() error {
	return f.acquire(context.Background(), flockctx.Shared, false)
}

// TryLock is Lock where that needs no waiting, and returns true then. If another
// program, handle or goroutine has the lock, it returns false and no error; a shared
// lock of the goroutine remains. Only if that is lost, since another program took it during
// the upgrade, as flock(2) allows, or since the file was removed, is there an error, which
// matches [flockctx.ErrNotLocked].
func (f *Flock) TryLock() (bool, error) {
	return f.try(flockctx.Exclusive)
}

// TryRLock is RLock where that needs no waiting, as TryLock is Lock.
func (f *Flock) TryRLock() (bool, error) {
	return f.try(flockctx.Shared)
}

// TryLockContext is Lock that waits until ctx is done. The bool is true if the error is
// nil. If ctx ends first, also before the call, the error is ctx.Err() itself; a shared
// lock of the goroutine remains, unless another program takes it at that moment: RLocked
// says so. The duration has no meaning any more, since it does not poll; where the
// system or the file system leaves no other way, flockctx chooses the interval.
func (f *Flock) TryLockContext(ctx context.Context, _ time.Duration) (bool, error) {
	return f.wait(ctx, flockctx.Exclusive)
}

// TryRLockContext is RLock that waits until ctx is done, as TryLockContext is Lock.
func (f *Flock) TryRLockContext(ctx context.Context, _ time.Duration) (bool, error) {
	return f.wait(ctx, flockctx.Shared)
}

func (f *Flock) try(m flockctx.Mode) (bool, error) {
	err := f.acquire(context.Background(), m, true)
	if errors.Is(err, flockctx.ErrLocked) {
		return false, nil
	}
	return err == nil, err
}

func (f *Flock) wait(ctx context.Context, m flockctx.Mode) (bool, error) {
	err := f.acquire(ctx, m, false)
	if busy := (*flockctx.BusyError)(nil); errors.As(err, &busy) {
		return false, ctx.Err()
	}
	return err == nil, err
}

// acquire makes the calling goroutine a holder in mode m.
func (f *Flock) acquire(ctx context.Context, m flockctx.Mode, try bool) error {
	me := self()
	f.mu.Lock()
	h := f.fh[me]
	f.mu.Unlock()
	var lost bool
	if h != nil && h.Locked() {
		var err error
		if try {
			err = h.TryConvert(m)
		} else {
			err = h.Convert(ctx, m)
		}
		if err == nil || h.Locked() && (try || ctx.Err() != nil) {
			return err
		}
		// The lock is lost; or Convert was refused, since two that share the lock
		// would wait for each other. An upgrade begins anew then, as in flock(2).
		lost = errors.Is(err, flockctx.ErrNotLocked)
		f.close(me, h)
	}
	opts := f.opts
	opts.Mode = m
	var err error
	if try {
		h, err = flockctx.TryLock(f.path, &opts)
	} else {
		h, err = flockctx.Lock(ctx, f.path, &opts)
	}
	if err != nil {
		if try && lost {
			return &fs.PathError{Op: "convert", Path: f.path, Err: flockctx.ErrNotLocked}
		}
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fh == nil {
		f.fh = map[goroutine]*flockctx.Flock{}
	}
	f.fh[me] = h
	return nil
}

// Unlock is [Flock.Close], which has that name in flockctx too: Unlock there keeps the
// file open.
//
//go:fix inline
func (f *Flock) Unlock() error { return f.Close() }

// Close releases the lock and closes the file, which stays on disk; the handle can be
// locked again. Without a lock it does nothing. A goroutine that holds the lock shared,
// beside others with the same handle, releases its own; one that holds none releases
// that of the others, so that a lock can be handed over.
//
// On nil the lock is gone for everyone, also where a child process inherited the file.
// On an error it may still be held, as Locked and RLocked say.
func (f *Flock) Close() error {
	f.mu.Lock()
	held := make(map[goroutine]*flockctx.Flock, len(f.fh))
	if len(f.fh) > 1 {
		me := self()
		if h := f.fh[me]; h != nil {
			held[me] = h
		}
	}
	if len(held) == 0 {
		for g, h := range f.fh {
			held[g] = h
		}
	}
	f.mu.Unlock()
	var err error
	for g, h := range held {
		if cerr := f.close(g, h); err == nil {
			err = cerr
		}
	}
	return err
}

// close closes h, a handle of g, and forgets it if it is not locked any more.
func (f *Flock) close(g goroutine, h *flockctx.Flock) error {
	err := h.Close()
	if errors.Is(err, fs.ErrClosed) { // by another goroutine, which has the error
		err = nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fh[g] == h && !h.Locked() {
		delete(f.fh, g)
	}
	return err
}
