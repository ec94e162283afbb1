package advisory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/internal/lineage"
	"github.com/flockctx/flockctx/locker"
)

// held implements locker.Held.
type held struct {
	*lease.Proof
	engine *engine
	call   *lease.Call
	s      *session
	parent lineage.Lock // the lock under which Lock was called, of whatever engine, or nil
	outer  *held        // the nearest one of the same engine that is held, or nil
	unlock string       // the query that unlocks
	token  locker.Token
	fenced bool
	freed  lease.Answer
}

// Context is the proof, which ends with the ownership, and knows its lock.
func (h *held) Context() context.Context { return lineage.With(h.Proof, h) }

func (h *held) Valid() (time.Time, bool)    { return h.Proof.Valid(), true }
func (h *held) Token() (locker.Token, bool) { return h.token, h.fenced }

// keep pings three times per TTL, and ends the proof when the connection ends.
func (h *held) keep() {
	interval := h.engine.ttl / 3
	next := time.NewTimer(interval)
	defer next.Stop()
	for {
		select {
		case <-h.Done():
			h.hangUp()
			return
		case <-h.s.dead:
			h.Lose(fmt.Errorf("its connection has ended: %w", h.s.err))
			return
		case <-next.C:
		}
		if h.Err() != nil { // looks at the clock
			h.hangUp()
			return
		}
		sent := lease.Now()
		_, err := h.s.ask(h.Proof, "select 1")
		switch {
		case err == nil:
			h.Extend(sent)
			next.Reset(max(interval-time.Duration(lease.Now()-sent), 0))
		case h.Err() == nil:
			h.Lose(fmt.Errorf("its connection has ended: %w", err))
		}
	}
}

// hangUp closes the connection of a lock that was lost, so that the server frees it
// as soon as it can be reached. The connection of a released lock is Unlock's.
func (h *held) hangUp() {
	if !errors.Is(context.Cause(h.Proof), locker.ErrReleased) {
		h.s.close()
	}
}

// end gives up a lock whose grant came too late.
func (h *held) end() {
	h.Release()
	h.s.close()
}

func (h *held) Unlock(ctx context.Context) error {
	return h.freed.Once(ctx, func() error { return h.release(ctx) }, h.unsure)
}

func (h *held) unsure(err error) error {
	return fmt.Errorf("postgres: unlock %q: %w: %w", h.call.Name, locker.ErrUnsure, err)
}

func (h *held) release(ctx context.Context) error {
	if !h.s.alive() { // known, even if keep has not run yet
		h.Lose(fmt.Errorf("its connection has ended: %w", h.s.err))
	}
	if lost := h.Release(); lost != nil {
		h.s.close()
		return lost
	}
	wait, cancel := context.WithTimeout(ctx, h.engine.Traits().Cleanup)
	defer cancel()
	row, err := h.s.ask(wait, h.unlock)
	if err == nil && len(row) == 1 && row[0] == "t" {
		h.engine.put(h.s)
		return nil
	}
	h.s.close()
	pe, answered := errors.AsType[*pgconn.PgError](err)
	switch {
	case err == nil:
		return h.lost(errors.New("the server's session did not hold it"))
	case answered && ended(err):
		return h.lost(pe) // the server ended the session before it unlocked
	}
	return h.unsure(err)
}

func (h *held) lost(why error) error {
	return fmt.Errorf("%v: %w: %w", h.call, locker.ErrLost, why)
}
