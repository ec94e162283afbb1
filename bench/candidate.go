//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	filemutex "github.com/alexflint/go-filemutex"
	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/semaphore"
	"github.com/gofrs/flock"
	"github.com/juju/fslock"
	"github.com/rogpeppe/go-internal/lockedfile"
	"golang.org/x/sys/unix"
)

// A handle is one candidate's lock on one path, used by one goroutine at a time. It
// takes and releases the lock in the way that the candidate offers for locking more
// than once.
type handle interface {
	Lock(ctx context.Context) error
	Unlock() error
	Close() error
}

// A candidate is a way to lock a file: a library used in one of its ways, or the bare
// system calls.
type candidate struct {
	name string
	how  string // what it does, for the legend of the report

	shared  bool // it can lock shared
	cancels bool // Lock returns when its context ends
	threads bool // each waiter takes a thread
	keeps   bool // open keeps the file open between locks: compared with oursKept, the others with ours

	open func(path string, shared bool) (handle, error)

	// once locks the file that path names, and releases it: what a program does
	// that locks now and then. It is nil where open is the only way.
	once func(ctx context.Context, path string, shared bool) error
}

// The names of the candidates that others are compared with.
const (
	ours      = "flockctx"
	oursKept  = "flockctx kept"
	oursPoll  = "flockctx poll"
	oursBare  = "flockctx + flock(2)"
	oursSlot  = "flockctx semaphore"
	oursFair  = "flockctx fair"
	bare      = "flock(2) Go"
	bareC     = "flock(2) C"
	bareStat  = "flock(2)+stat Go"
	gofrs1    = "gofrs 1ms"
	gofrs10   = "gofrs 10ms"
	gofrsBlk  = "gofrs Lock"
	gofrsStat = "gofrs 10ms+stat"
	locked    = "lockedfile"
	fmutex    = "filemutex"
	fsl       = "fslock"
)

var candidates = []*candidate{
	{
		name: ours, how: "Lock(ctx, path) and Close",
		shared: true, cancels: true,
		open: func(path string, shared bool) (handle, error) {
			return &oursByPath{path: path, opts: options(shared, flockctx.WaitAuto)}, nil
		},
		once: func(ctx context.Context, path string, shared bool) error {
			opts := &exclusiveOptions
			if shared {
				opts = &sharedOptions
			}
			l, err := flockctx.Lock(ctx, path, opts)
			if err != nil {
				return err
			}
			return l.Close()
		},
	},
	{
		name: oursKept, how: "New once, then Lock(ctx) and Unlock on the handle, which verifies the path each time",
		shared: true, cancels: true, keeps: true,
		open: func(path string, shared bool) (handle, error) {
			return flockctx.New(path, options(shared, flockctx.WaitAuto)), nil
		},
	},
	{
		name: oursPoll, how: "as kept, with WaitPoll: polls after 1 ms, doubling to 100 ms",
		shared: true, cancels: true, keeps: true,
		open: func(path string, shared bool) (handle, error) {
			return flockctx.New(path, options(shared, flockctx.WaitPoll)), nil
		},
	},
	{
		name: oursBare, how: "as flockctx, where the process beside it uses flock(2) as flock(1) does",
		shared: true, cancels: true,
		open: func(path string, shared bool) (handle, error) {
			return &oursByPath{path: path, opts: options(shared, flockctx.WaitAuto)}, nil
		},
	},
	{
		name: oursSlot, how: "semaphore.Acquire(ctx, path, 1) and Release: the only slot of a semaphore",
		cancels: true,
		open: func(path string, _ bool) (handle, error) {
			return &slotHandle{path: path}, nil
		},
	},
	{
		name: oursFair, how: "as kept, with Options.Fair: processes stand in line",
		shared: true, cancels: true, keeps: true,
		open: func(path string, shared bool) (handle, error) {
			opts := options(shared, flockctx.WaitAuto)
			opts.Fair = true
			return flockctx.New(path, opts), nil
		},
	},
	gofrsPolling(gofrs1, time.Millisecond),
	gofrsPolling(gofrs10, 10*time.Millisecond),
	{
		name: gofrsStat, how: "as gofrs 10ms, and after the grant Stat of the open file and of the path are compared (os.SameFile): what flockctx does",
		shared: true, cancels: true,
		once: func(ctx context.Context, path string, shared bool) error {
			h := gofrsHandle{flock.New(path), 10 * time.Millisecond, shared}
			if err := h.Lock(ctx); err != nil {
				return err
			}
			if err := h.verify(); err != nil {
				return errors.Join(err, h.Unlock())
			}
			return h.Unlock()
		},
	},
	{
		name: gofrsBlk, how: "gofrs/flock: Lock, without a context, and Unlock; opens and closes the file each time",
		shared: true, threads: true,
		open: func(path string, shared bool) (handle, error) {
			return &gofrsHandle{f: flock.New(path), shared: shared}, nil
		},
		once: func(_ context.Context, path string, shared bool) error {
			return lockAndUnlock(&gofrsHandle{f: flock.New(path), shared: shared})
		},
	},
	{
		name: locked, how: "rogpeppe/go-internal/lockedfile, the copy of cmd/go's: Edit or Open, and Close; no context",
		shared: true, threads: true,
		open: func(path string, shared bool) (handle, error) {
			return &lockedfileHandle{path: path, shared: shared}, nil
		},
		once: func(_ context.Context, path string, shared bool) error {
			h := lockedfileHandle{path: path, shared: shared}
			return lockAndUnlock(&h)
		},
	},
	{
		name: fmutex, how: "alexflint/go-filemutex: Lock and Unlock on an open file; by path New and Close around them; no context",
		shared: true, threads: true, keeps: true,
		open: func(path string, shared bool) (handle, error) {
			m, err := filemutex.New(path)
			return &filemutexHandle{m, shared}, err
		},
		once: func(_ context.Context, path string, shared bool) error {
			m, err := filemutex.New(path)
			if err != nil {
				return err
			}
			h := filemutexHandle{m, shared}
			if err := h.Lock(context.Background()); err != nil {
				return err
			}
			return m.Close()
		},
	},
	{
		name: fsl, how: "juju/fslock: Lock and Unlock, which open and close the file; exclusive only; a timeout, no context",
		threads: true,
		open: func(path string, shared bool) (handle, error) {
			return &fslockHandle{fslock.New(path)}, nil
		},
		once: func(_ context.Context, path string, shared bool) error {
			return lockAndUnlock(&fslockHandle{fslock.New(path)})
		},
	},
	{
		name: bare, how: "the floor: flock(2), called from Go without anything around it; by path open, flock, close",
		shared: true, threads: true, keeps: true,
		open: func(path string, shared bool) (handle, error) {
			return openBare(path, shared, false)
		},
		once: func(_ context.Context, path string, shared bool) error {
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
			if err != nil {
				return err
			}
			if err := unix.Flock(fd, how(shared)); err != nil {
				return err
			}
			return unix.Close(fd)
		},
	},
	{
		name: bareStat, how: "the floor of a lock that verifies its path, from Go: flock, stat and flock; by path the six system calls open, fstat, flock, stat, flock and close, whose answers are compared",
		shared: true, threads: true, keeps: true,
		open: func(path string, shared bool) (handle, error) {
			return openBare(path, shared, true)
		},
		once: func(_ context.Context, path string, shared bool) error {
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
			if err != nil {
				return err
			}
			var opened, named unix.Stat_t
			if err := unix.Fstat(fd, &opened); err != nil {
				return err
			}
			if err := unix.Flock(fd, how(shared)); err != nil {
				return err
			}
			if err := unix.Stat(path, &named); err != nil {
				return err
			}
			if opened.Dev != named.Dev || opened.Ino != named.Ino {
				return errors.New("the path names another file")
			}
			if err := unix.Flock(fd, unix.LOCK_UN); err != nil {
				return err
			}
			return unix.Close(fd)
		},
	},
	{name: bareC, how: "the system calls of " + bare + ", in C, optimized", shared: true, threads: true, keeps: true},
}

func find(name string) *candidate {
	for _, c := range candidates {
		if c.name == name {
			return c
		}
	}
	return nil
}

func lockAndUnlock(h handle) error {
	if err := h.Lock(context.Background()); err != nil {
		return err
	}
	return h.Unlock()
}

var (
	exclusiveOptions flockctx.Options
	sharedOptions    = flockctx.Options{Mode: flockctx.Shared}
)

func options(shared bool, w flockctx.Wait) *flockctx.Options {
	o := &flockctx.Options{Wait: w}
	if shared {
		o.Mode = flockctx.Shared
	}
	return o
}

type oursByPath struct {
	path string
	opts *flockctx.Options
	l    *flockctx.Flock
}

func (h *oursByPath) Lock(ctx context.Context) (err error) {
	h.l, err = flockctx.Lock(ctx, h.path, h.opts)
	return err
}
func (h *oursByPath) Unlock() error { return h.l.Close() }
func (h *oursByPath) Close() error  { return nil }

type slotHandle struct {
	path string
	p    *semaphore.Permit
}

func (h *slotHandle) Lock(ctx context.Context) (err error) {
	h.p, err = semaphore.Acquire(ctx, h.path, 1, nil)
	return err
}
func (h *slotHandle) Unlock() error { return h.p.Release() }
func (h *slotHandle) Close() error  { return nil }

type gofrsHandle struct {
	f      *flock.Flock
	delay  time.Duration // 0: Lock, which blocks
	shared bool
}

func gofrsPolling(name string, delay time.Duration) *candidate {
	return &candidate{
		name: name, how: "gofrs/flock: TryLockContext with a retry delay of " + delay.String() + ", and Unlock; opens and closes the file each time",
		shared: true, cancels: true,
		open: func(path string, shared bool) (handle, error) {
			return &gofrsHandle{flock.New(path), delay, shared}, nil
		},
		once: func(ctx context.Context, path string, shared bool) error {
			h := gofrsHandle{flock.New(path), delay, shared}
			if err := h.Lock(ctx); err != nil {
				return err
			}
			return h.Unlock()
		},
	}
}

func (h *gofrsHandle) Lock(ctx context.Context) (err error) {
	switch {
	case h.delay == 0 && h.shared:
		return h.f.RLock()
	case h.delay == 0:
		return h.f.Lock()
	case h.shared:
		_, err = h.f.TryRLockContext(ctx, h.delay)
	default:
		_, err = h.f.TryLockContext(ctx, h.delay)
	}
	return err
}

// verify fails if the path names another file by now.
func (h *gofrsHandle) verify() error {
	is, err := h.f.Stat()
	if err != nil {
		return err
	}
	named, err := os.Stat(h.f.Path())
	if err != nil {
		return err
	}
	if !os.SameFile(is, named) {
		return fmt.Errorf("%s: another file by now", h.f.Path())
	}
	return nil
}

func (h *gofrsHandle) Unlock() error { return h.f.Unlock() }
func (h *gofrsHandle) Close() error  { return nil }

type lockedfileHandle struct {
	path   string
	shared bool
	f      *lockedfile.File
}

func (h *lockedfileHandle) Lock(context.Context) (err error) {
	if h.shared {
		h.f, err = lockedfile.Open(h.path)
	} else {
		h.f, err = lockedfile.Edit(h.path)
	}
	return err
}
func (h *lockedfileHandle) Unlock() error { return h.f.Close() }
func (h *lockedfileHandle) Close() error  { return nil }

type filemutexHandle struct {
	m      *filemutex.FileMutex
	shared bool
}

func (h *filemutexHandle) Lock(context.Context) error {
	for {
		var err error
		if h.shared {
			err = h.m.RLock()
		} else {
			err = h.m.Lock()
		}
		// It hands EINTR to its caller.
		if err != unix.EINTR {
			return err
		}
	}
}
func (h *filemutexHandle) Unlock() error { return h.m.Unlock() }
func (h *filemutexHandle) Close() error  { return h.m.Close() }

type fslockHandle struct{ l *fslock.Lock }

func (h *fslockHandle) Lock(context.Context) error { return h.l.Lock() }
func (h *fslockHandle) Unlock() error              { return h.l.Unlock() }
func (h *fslockHandle) Close() error               { return nil }

type bareHandle struct {
	path string
	fd   int
	how  int
	stat bool
	st   unix.Stat_t
}

func how(shared bool) int {
	if shared {
		return unix.LOCK_SH
	}
	return unix.LOCK_EX
}

func openBare(path string, shared, stat bool) (handle, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &bareHandle{path: path, fd: fd, how: how(shared), stat: stat}, nil
}

func (h *bareHandle) Lock(context.Context) error {
	for {
		err := unix.Flock(h.fd, h.how)
		if err == unix.EINTR {
			continue
		}
		if err == nil && h.stat {
			err = unix.Stat(h.path, &h.st)
		}
		return err
	}
}
func (h *bareHandle) Unlock() error { return unix.Flock(h.fd, unix.LOCK_UN) }
func (h *bareHandle) Close() error  { return unix.Close(h.fd) }
