//go:build !linux && !darwin

package semaphore

import (
	"errors"
	"os"
	"strconv"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/internal/sys"
)

// turn returns what a handle on the turn is made from.
func (s *semaphore) turn() (path string, opts *flockctx.Options) {
	return s.path + ".turn-" + strconv.Itoa(s.n), &s.opts
}

// enter does nothing: slots are had without a turn.
func (s *semaphore) enter() (*place, error) { return s.newPlace(flockctx.New(s.turn())) }

// A place is by what one slot can be had.
type place struct {
	s     *semaphore
	entry *flockctx.Flock // not needed once there is a slot
	held  *flockctx.Flock
}

func (s *semaphore) newPlace(entry *flockctx.Flock) (*place, error) {
	return &place{s: s, entry: entry}, nil
}

// take takes the slot, or fails with sys.ErrBusy.
func (p *place) take(slot int) (err error) {
	p.held, err = flockctx.TryLock(p.s.path+"."+strconv.Itoa(slot), &p.s.opts)
	if errors.Is(err, flockctx.ErrLocked) {
		err = sys.ErrBusy
	}
	return err
}

// leave gives up what the place was entered by.
func (p *place) leave() error { return p.entry.Close() }

// lend returns the file to somebody who may give it to a child.
func (p *place) lend() *os.File { return p.held.File() }

// current would find that the path names another file; that of the slot was looked at.
func (p *place) current(*semaphore) error { return nil }

// release gives the slot back.
func (p *place) release(int) error { return p.held.Close() }

// SlotOf returns the number of the slot that h, from [flockctx.Holders] or
// [flockctx.AllHolders], has, or -1 where h is of one that waits for a slot: the one
// whose turn it is, or with h.Waiting one behind it. For any other lock ok is false.
// On systems that do not tell who holds a lock there is no such h.
func SlotOf(h flockctx.Holder) (slot int, ok bool) { return 0, false }
