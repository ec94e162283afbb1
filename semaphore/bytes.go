//go:build linux || darwin

package semaphore

import (
	"errors"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/internal/sys"
)

// Where the bytes of slots and turns begin. [flockctx.Options] ranges of other uses, and
// what SQLite locks, lie far below.
const (
	slots = 1 << 62
	turns = slots + 1<<61

	// door is locked by nobody alone: who locks it shared has opened the file.
	door = turns
)

// byteAt returns the options for a lock of one byte of the semaphore's file.
func (s *semaphore) byteAt(start int64) *flockctx.Options {
	o := s.opts
	o.Mechanism, o.Start, o.Length = flockctx.OFD, start, 1
	return &o
}

// turn returns what a handle on the turn is made from.
func (s *semaphore) turn() (path string, opts *flockctx.Options) {
	return s.name, s.byteAt(turns + int64(s.n))
}

// enter opens the file without a turn.
func (s *semaphore) enter() (*place, error) {
	o := s.byteAt(door)
	o.Mode = flockctx.Shared
	entry, err := flockctx.TryLock(s.path, o)
	if err != nil {
		return nil, err
	}
	pl, err := s.newPlace(entry)
	if err != nil {
		entry.Close()
		return nil, s.failure("lock", err)
	}
	return pl, nil
}

// A place is an open file, by which one slot can be had. The kernel keeps the slots of
// two of them apart, in one process too, since each was opened for itself.
type place struct {
	entry *flockctx.Flock // has opened the file, and has it until the permit's end
	desc  sys.Descriptor
	lent  atomic.Bool // somebody else may have the file open, such as a child
}

func (s *semaphore) newPlace(entry *flockctx.Flock) (*place, error) {
	d, err := sys.Borrow(entry.File())
	return &place{entry: entry, desc: d}, err
}

func request(op sys.Op, slot int) sys.Request {
	return sys.Request{Op: op, OFD: true, Start: slots + int64(slot), Length: 1}
}

// take takes the slot, or fails with sys.ErrBusy.
func (p *place) take(slot int) error { return p.desc.Lock(request(sys.Try, slot)) }

// leave unlocks what the place was entered by.
func (p *place) leave() error { return p.entry.Unlock() }

// lend returns the file to somebody who may give it to a child.
func (p *place) lend() *os.File {
	p.lent.Store(true)
	return p.desc.Made()
}

// current returns sys.ErrStale where the path names another file by now.
func (p *place) current(s *semaphore) error {
	err := p.desc.Verify(s.at)
	if err != nil && err != sys.ErrStale {
		err = s.failure("stat", err)
	}
	return err
}

// release gives the slot back, then the file.
func (p *place) release(slot int) error {
	err := p.desc.Lock(request(sys.Unlock, slot))
	switch {
	case err == nil && p.lent.Load():
		ring(p.desc.Made())
	case err != nil && !errors.Is(err, fs.ErrClosed):
		p.entry.Close() // with which the slot goes, but for a child
		return &fs.PathError{Op: "unlock", Path: p.entry.Name(), Err: err}
	}
	return p.entry.Close()
}

// SlotOf returns the number of the slot that h, from [flockctx.Holders] or
// [flockctx.AllHolders], has, or -1 where h is of one that waits for a slot: the one
// whose turn it is, or with h.Waiting one behind it. For any other lock ok is false.
func SlotOf(h flockctx.Holder) (slot int, ok bool) {
	switch at := h.Start; {
	case h.Mechanism != flockctx.OFD || h.Length != 1:
		return 0, false
	case slots <= at && at < slots+maxSlots:
		return int(at - slots), true
	case turns < at && at <= turns+maxSlots:
		return -1, true
	}
	return 0, false
}
