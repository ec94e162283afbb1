package leased

import (
	"context"
	"errors"
	"time"
)

// sweepEvery is how often a Locker in use removes what others have left behind.
const sweepEvery = time.Hour

// All locks of a Locker are renewed by one request, three times per TTL or more often. One
// that is not answered is followed by another after half of that time.

// keep has h renewed from now on.
func (e *Engine) keep(h *held) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.held[h.id] = h
	if e.renewal == nil {
		e.renewal = time.AfterFunc(e.every, e.renew)
	}
}

// forget has h renewed no longer.
func (e *Engine) forget(h *held) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.held, h.id)
}

// renew is the timer's function.
func (e *Engine) renew() {
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
	e.renewal.Reset(e.every / 2)
	e.mu.Unlock()

	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), e.ttl)
	defer cancel()
	names := make(map[string]string, len(all))
	for _, h := range all {
		names[h.id] = h.call.Name
	}
	ids, sent, err := e.server.Renew(ctx, e.Owner, e.ttl, names)
	if err != nil {
		return // the next one may succeed
	}
	renewed := map[string]bool{}
	for _, id := range ids {
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
		e.renewal.Reset(max(e.every-time.Since(begin), 0))
	}
}

// sweep removes what nobody wants any more. If it fails, another Locker's turn comes.
func (e *Engine) sweep() {
	ctx, cancel := context.WithTimeout(context.Background(), e.ttl)
	defer cancel()
	e.server.Sweep(ctx)
}
