package postgres

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/flockctx/flockctx/internal/lease"
)

// sweepEvery is how often a Locker in use removes what others have left behind.
const sweepEvery = time.Hour

// All locks of a Locker are renewed by one statement, three times per TTL. One that is
// not answered is followed by another after a sixth of the TTL, on another connection.

// keep has h renewed from now on.
func (e *engine) keep(h *held) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.held[h.id] = h
	if e.renewal == nil {
		e.renewal = time.AfterFunc(e.ttl/3, e.renew)
	}
}

// forget has h renewed no longer.
func (e *engine) forget(h *held) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.held, h.id)
}

// renew is the timer's function.
func (e *engine) renew() {
	e.mu.Lock()
	if time.Since(e.swept) > sweepEvery {
		e.swept = time.Now()
		go e.sweep()
	}
	var all []*held // granted by the server before the statement below
	for id, h := range e.held {
		if h.Err() != nil { // looks at the clock
			delete(e.held, id)
			h.abandon()
			continue
		}
		all = append(all, h)
	}
	if len(all) == 0 {
		e.renewal = nil
		e.mu.Unlock()
		return
	}
	e.renewal.Reset(e.ttl / 6)
	e.mu.Unlock()

	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), e.ttl)
	defer cancel()
	var ids string
	sent, err := e.run(ctx, "call flockctx.renew($1::text, $2::bigint, null)", []any{e.owner, e.ttl.Milliseconds()}, &ids)
	if err != nil {
		return // the next one may succeed
	}
	renewed := map[string]bool{}
	for id := range strings.FieldsSeq(ids) {
		renewed[id] = true
	}
	for _, h := range all {
		if renewed[h.id] {
			h.Extend(sent)
		} else {
			h.Lose(errors.New("it was removed from the server"))
			e.forget(h)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.renewal != nil {
		e.renewal.Reset(max(e.ttl/3-time.Since(begin), 0))
	}
}

// sweep removes what nobody wants any more. If it fails, another Locker's turn comes.
func (e *engine) sweep() {
	ctx, cancel := context.WithTimeout(context.Background(), e.ttl)
	defer cancel()
	var names int64
	e.run(ctx, "call flockctx.sweep(null)", nil, &names)
}

// run sends a statement and scans its one row. An end of ctx ends the wait for a
// connection, but not a statement that was sent: it would go on on the server, and
// nobody would know how it ended. Both waits have a limit of their own, since a
// connection may be dead, and dead without a sign. sent is 0 if nothing was sent.
func (e *engine) run(ctx context.Context, sql string, args []any, dest ...any) (sent lease.Instant, err error) {
	limit := max(e.ttl/3, 2*time.Second)
	actx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := e.db.acquire(actx)
	if err != nil {
		return 0, err
	}
	defer conn.release()
	rctx, cancelRow := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancelRow()
	sent = lease.Now()
	return sent, conn.row(rctx, sql, args, dest...)
}
