package leased

import (
	"context"
	"errors"
	"time"
)

// ears hear the server tell that a claim need not wait any more. Nothing depends on them.
type ears struct {
	stop context.CancelFunc // ends the goroutine; nil: there is none
	rest *time.Timer        // calls stop a TTL after the last wait; nil: somebody waits
	open bool               // the server has taken the subscription
	deaf bool               // there are no notices over what lies in between
}

// hears reports whether notices come.
func (e *Engine) hears() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ears.open
}

// listen sees to it that notices come, if they can, while somebody waits.
func (e *Engine) listen() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ears.rest != nil {
		e.ears.rest.Stop()
		e.ears.rest = nil
	}
	if e.ears.stop != nil || e.ears.deaf || e.lines.Closed() {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.ears.stop = cancel
	go e.hear(ctx)
}

// restLocked lets the connection go a TTL after the last wait.
func (r *ears) restLocked(e *Engine) {
	if len(e.waiting) > 0 || r.stop == nil || r.rest != nil {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(e.ttl, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if r.rest != t {
			return
		}
		r.rest = nil // a call that is under way starts another when it ends
		if len(e.waiting) == 0 {
			r.cover()
		}
	})
	r.rest = t
}

// cover ends the goroutine. The engine's mu is held.
func (r *ears) cover() {
	if r.stop != nil {
		r.stop()
	}
	if r.rest != nil {
		r.rest.Stop()
	}
	r.stop, r.rest, r.open = nil, nil, false
}

// hear is the goroutine.
func (e *Engine) hear(ctx context.Context) {
	for {
		err := e.subscribe(ctx)
		e.mu.Lock()
		if ctx.Err() != nil {
			e.mu.Unlock()
			return
		}
		e.ears.open = false
		if errors.Is(err, ErrDeaf) {
			e.ears.deaf = true
			e.ears.cover()
			e.mu.Unlock()
			return
		}
		e.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(e.ttl / 3):
		}
	}
}

// subscribe passes on notices until the subscription or ctx ends.
func (e *Engine) subscribe(ctx context.Context) error {
	return e.server.Hear(ctx, e.Owner, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if ctx.Err() == nil {
			e.ears.open = true
		}
		for _, c := range e.waiting {
			c.poke() // a notice may have been missed
		}
	}, func(id string) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if c := e.waiting[id]; c != nil {
			c.poke()
		}
	})
}

// poke has the claim look again.
func (c *claim) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
