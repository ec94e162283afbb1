package semaphore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/internal/sys"
)

// A Permit is a slot that the caller has. Its methods are safe for concurrent use.
//
// A permit that the program forgot keeps its slot until the process ends.
type Permit struct {
	slot  int
	place *place
}

// Acquire takes one of the n slots of the file that path names, waiting until ctx is
// done. The file is created where it is missing; it must be writable.
//
// On nil the permit's slot is the caller's, on the file that path names now. If ctx
// ends first, even together with a slot, the error is a [*flockctx.BusyError] that
// matches ctx.Err() and [context.Cause](ctx); a ctx that is done on entry always fails
// so, without any I/O. Any other error is an [*fs.PathError], as that of
// [flockctx.Flock.Lock]. On any error nothing is taken or left behind, but for a file
// that Acquire created. ctx governs the wait, not the slot.
//
// Callers with different n may use one path: each takes a slot below its own n, beside
// whoever has the others, and waits in a queue with those of the same n.
//
// Of opts, which may be nil, Wait, Poll, Flag and Perm mean what they do for a lock.
// Wait and Poll are for the turn; who has it waits for a slot by events of the kernel,
// unless Wait is WaitPoll, as it must be in a testing/synctest bubble, or the file system
// is not a local one of Linux. The others are the semaphore's own and must be zero, as
// Remove must: a file that is removed is another semaphore for those who come next.
//
// The nth Release in a process is synchronized before the return of the next Acquire
// there, in the terms of the Go memory model.
func Acquire(ctx context.Context, path string, n int, opts *flockctx.Options) (*Permit, error) {
	s, err := newSemaphore(path, n, opts)
	if err != nil {
		return nil, err
	}
	for {
		p, err := s.acquire(ctx)
		if err != sys.ErrStale {
			return p, err
		}
		s.name = s.at // the working directory may be another one by now
	}
}

// TryAcquire takes a slot if that needs no waiting, also before those who wait. Where
// all n are taken the error is a [*flockctx.BusyError] that matches
// [flockctx.ErrLocked]; else it is as Acquire.
func TryAcquire(path string, n int, opts *flockctx.Options) (*Permit, error) {
	s, err := newSemaphore(path, n, opts)
	if err != nil {
		return nil, err
	}
	pl, err := s.enter()
	if err != nil {
		return nil, err
	}
	p, err := s.look(pl)
	if p == nil {
		pl.entry.Close()
	}
	if p == nil && err == nil {
		err = &flockctx.BusyError{Path: path, Err: fullError(n)}
	}
	return p, err
}

// fullError says that all slots are taken.
type fullError int

func (n fullError) Error() string      { return fmt.Sprintf("all %d slots are taken", int(n)) }
func (fullError) Is(target error) bool { return target == flockctx.ErrLocked }

// Slot returns the number of the slot, from 0 to n-1. Nobody else has it until Release.
func (p *Permit) Slot() int {
	if p.unmade() {
		return -1
	}
	return p.slot
}

// unmade reports whether it was neither Acquire nor TryAcquire that made the permit.
func (p *Permit) unmade() bool { return p == nil || p.place == nil }

// File returns the open file that has the slot. A child process that inherits it keeps
// the slot until Release, or until it has ended too. The permit closes it, not the
// caller.
func (p *Permit) File() *os.File {
	if p.unmade() {
		return nil
	}
	return p.place.lend()
}

// Release gives the slot back. On nil it is free for everyone, also where a child
// process inherited the file. On an error, an [*fs.PathError], it is given up all the
// same, but for a child that has the file. A second Release returns an error that
// matches [fs.ErrClosed] and does nothing, that of a nil Permit and the zero one one that
// matches [fs.ErrInvalid].
func (p *Permit) Release() error {
	if p.unmade() {
		return &fs.PathError{Op: "release", Path: "(no permit)", Err: fs.ErrInvalid}
	}
	released.Add(1)
	hint.Store(uint32(p.slot) + 1)
	err := p.place.release(p.slot)
	held.Delete(p)
	return err
}

// Close is Release.
func (p *Permit) Close() error { return p.Release() }

var (
	// released makes a Release synchronized before the next Acquire, for the memory model:
	// the one adds before its system call, the other loads after it.
	released atomic.Uint64

	// hint is one more than the slot that this process gave back last, which is likely to
	// be free, and what belongs to it in somebody's cache; or 0.
	hint atomic.Uint32

	// held keeps the permits reachable: a file that is collected is closed.
	held sync.Map
)

// maxSlots keeps the bytes of slots and turns apart.
const maxSlots = 1 << 30

// A semaphore is what a call wants.
type semaphore struct {
	path string // as the caller gave it
	at   string // what it meant then: an absolute path
	name string // one of the two, to open the file by
	n    int
	opts flockctx.Options
}

func newSemaphore(path string, n int, opts *flockctx.Options) (*semaphore, error) {
	s := &semaphore{path: path, at: path, name: path, n: n}
	if opts != nil {
		s.opts = *opts
	}
	o := &s.opts
	var err error
	switch {
	case n < 1 || n > maxSlots:
		err = fmt.Errorf("%d slots: %w", n, syscall.EINVAL)
	case o.Mode != flockctx.Exclusive || o.Mechanism != flockctx.BSD || o.Start != 0 || o.Length != 0 || o.Remove || o.Flag&os.O_TRUNC != 0:
		err = sys.Unsupported("a semaphore takes no Mode, Mechanism, Start, Length, Remove or O_TRUNC")
	case !filepath.IsAbs(path) && path != "":
		// Not filepath.Abs: without "..", the path behind a symbolic link is another one.
		var dir string
		if dir, err = os.Getwd(); err == nil {
			s.at = dir + string(filepath.Separator) + path
		}
	}
	if err != nil {
		return nil, s.failure("acquire", err)
	}
	return s, nil
}

// failure names the path and the operation, unless err does.
func (s *semaphore) failure(op string, err error) error {
	if _, named := errors.AsType[*fs.PathError](err); named {
		return err
	}
	return &fs.PathError{Op: op, Path: s.path, Err: err}
}

// acquire takes a slot when it is its turn. It returns sys.ErrStale where the path names
// another file by then.
func (s *semaphore) acquire(ctx context.Context) (p *Permit, err error) {
	turn := flockctx.New(s.turn())
	defer func() {
		if p == nil { // also where ctx panics
			turn.Close()
		}
	}()
	if err := turn.Lock(ctx); err != nil {
		if busy, ok := errors.AsType[*flockctx.BusyError](err); ok {
			busy.Path = s.path // and not the file of the turn
		}
		return nil, err
	}
	pl, err := s.newPlace(turn)
	if err != nil {
		return nil, s.failure("lock", err)
	}
	if p, err := s.look(pl); p != nil || err != nil {
		return p, err
	}
	return s.wait(ctx, pl)
}

// look takes a free slot, if there is one, and unlocks what the place was entered by.
func (s *semaphore) look(pl *place) (*Permit, error) {
	first := s.first()
	for i := range s.n {
		slot := (first + i) % s.n
		switch err := pl.take(slot); err {
		case nil:
			released.Load()
			p := &Permit{slot: slot, place: pl}
			held.Store(p, nil)
			if err := pl.leave(); err != nil {
				p.Release()
				return nil, err
			}
			return p, nil
		case sys.ErrBusy:
		default:
			return nil, s.failure("lock", err)
		}
	}
	return nil, nil
}

// few slots are looked at from the first one; of many most of those may be taken.
const few = 64

// first returns where to begin to look.
func (s *semaphore) first() int {
	switch h := int(hint.Load()); {
	case h > 0:
		return (h - 1) % s.n
	case s.n > few:
		return rand.IntN(s.n)
	}
	return 0
}
