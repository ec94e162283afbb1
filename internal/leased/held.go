package leased

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/internal/lineage"
	"github.com/flockctx/flockctx/locker"
)

// held implements locker.Held.
type held struct {
	*lease.Proof
	*claim
	token uint64 // 0: shared
	freed lease.Answer
}

// hold returns the lock of a claim that was granted in the answer to what was sent, and
// has it renewed.
func (c *claim) hold(ctx context.Context, token uint64, sent lease.Instant) *held {
	h := &held{claim: c, token: token, Proof: lease.New(ctx, c.engine.ttl, sent, c.call.String())}
	c.engine.keep(h)
	return h
}

// Context is the proof, which ends with the ownership, and knows its lock.
func (h *held) Context() context.Context { return lineage.With(h.Proof, h) }

// Outer implements lineage.Lock.
func (h *held) Outer() lineage.Lock { return h.outer }

func (h *held) Valid() (time.Time, bool) { return h.Proof.Valid(), true }

func (h *held) Token() (locker.Token, bool) {
	if h.token == 0 {
		return locker.Token{}, false
	}
	return locker.Token{Epoch: h.engine.name, N: h.token}, true
}

func (h *held) Unlock(ctx context.Context) error {
	return h.freed.Once(ctx, func() error { return h.release(ctx) }, h.unsure)
}

func (h *held) unsure(err error) error {
	return fmt.Errorf("%s: unlock %q: %w: %w", h.engine.name, h.call.Name, locker.ErrUnsure, err)
}

// release may return before the server has answered, and goes on all the same.
func (h *held) release(ctx context.Context) error {
	until := lease.Now() + lease.Instant(time.Until(h.Proof.Valid()))
	h.engine.forget(h)
	if lost := h.Release(); lost != nil {
		h.abandon()
		return lost
	}
	ctx, cancel := context.WithTimeout(ctx, h.engine.Traits().Cleanup)
	released := make(chan error, 1)
	h.engine.crew.run(func() {
		defer cancel()
		h.engine.lines.LetIn(ctx, h.call.Name)
		found, repeated, err := h.remove()
		switch {
		case err != nil:
			err = h.unsure(err)
		case found || repeated && lease.Now() < until:
			// Nobody else may remove it before its time is up, so the try
			// without an answer did.
		case repeated:
			err = h.unsure(errors.New("it is gone, and an answer was lost"))
		default:
			err = fmt.Errorf("%v: %w: it was removed from the server", h.call, locker.ErrLost)
		}
		released <- err
	})
	select {
	case err := <-released:
		return err
	case <-ctx.Done():
		select {
		case err := <-released: // an answer beats an ended ctx
			return err
		default:
			return h.unsure(context.Cause(ctx))
		}
	}
}
