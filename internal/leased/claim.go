package leased

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	mrand "math/rand/v2"
	"time"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/internal/line"
	"github.com/flockctx/flockctx/internal/lineage"
	"github.com/flockctx/flockctx/locker"
)

// Pauses after an error that may pass: the first, and the longest that they grow to.
const (
	minPause = 50 * time.Millisecond
	maxPause = time.Second
)

const (
	// minLook keeps a waiter from looking all the time.
	minLook = 10 * time.Millisecond

	// deadlockAfter is the server's own deadlock_timeout: looking costs something,
	// and most waits are shorter.
	deadlockAfter = time.Second
)

// A claim is a call's row on the server. It is known by an ID of its own, so that every
// statement about it can be repeated if its answer is lost.
//
// Its place in the queue is the moment at which its wait began, in this process's line or
// not. So the next one in line is not behind those of other processes that came after it,
// once its claim is there; and Unlock lets it get there before it frees the lock. A call
// under another lock does not stand in line: its wait could be part of a deadlock, so it
// must be seen in the rows.
type claim struct {
	engine *Engine
	call   *lease.Call
	try    bool
	id     string
	under  []string // the claims under which it was called
	outer  lineage.Lock
	note   string
	began  time.Time
	wake   chan struct{}   // a notice: look again
	flight <-chan struct{} // closed when no statement of the claim is under way
	why    error           // why no server has taken the claim in, or nil
	placed time.Time       // when a server first answered; guarded by the engine's mu
}

func (e *Engine) newClaim(ctx context.Context, call *lease.Call, try bool) *claim {
	c := &claim{
		engine: e, call: call, try: try, id: rand.Text(), note: locker.Note(ctx),
		outer: lineage.From(ctx), began: time.Now(), wake: make(chan struct{}, 1),
	}
	if e.circles != nil {
		for l := c.outer; l != nil; l = l.Outer() {
			if h, ok := l.(*held); ok && h.Err() == nil {
				c.under = append(c.under, h.id)
			}
		}
	}
	return c
}

// acquire returns when the claim is granted or given up. On an error nothing is left on
// the server, or soon will be.
func (c *claim) acquire(ctx context.Context) (h *held, err error) {
	e := c.engine
	var l *line.Line
	if !c.try && len(c.under) == 0 {
		if l, c.why, err = e.lines.Enter(ctx, c.call.Name, c.began); err != nil {
			return nil, err
		}
		defer l.Leave()
	}
	e.mu.Lock()
	e.waiting[c.id] = c
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.waiting, c.id)
		e.ears.restLocked(e)
		e.mu.Unlock()
		if err != nil && err != errBusy {
			c.abandon()
		}
	}()

	// Until a server has taken it in.
	limit, cancel := lease.Reach(ctx)
	defer cancel()
	pause := minPause
	circle := time.Now().Add(deadlockAfter + mrand.N(deadlockAfter/4))
	for {
		var a Answer
		var sent lease.Instant
		a, sent, err = c.ask(limit)
		c.answered(ctx, l, err)
		switch {
		case err == nil && a.Granted:
			if time.Duration(lease.Now()-sent) < e.ttl/2 {
				return c.hold(ctx, a.Token, sent), nil
			}
			pause = 0 // an answer that took long proves little
			if !c.try {
				limit = ctx // it has more than a place
			}
			e.mu.Lock()
			c.why = errSlow
			e.mu.Unlock()
		case err == nil && c.try:
			return nil, errBusy
		case err == nil:
			limit = ctx
			e.listen()
			pause = c.pause(a.Look)
			if len(c.under) > 0 {
				if left := time.Until(circle); left > 0 {
					pause = min(pause, left+time.Millisecond)
				} else if err = c.findCircle(limit); err != nil {
					return nil, err
				}
			}
		case limit.Err() != nil:
		case e.server.Transient(err):
			pause = min(2*max(pause, minPause/2), maxPause)
		default:
			return nil, err
		}
		select {
		case <-c.wake:
		case <-time.After(pause):
		case <-limit.Done():
			if ctx.Err() == nil {
				return nil, lease.Unavailable(c.why)
			}
			return nil, ctx.Err()
		case <-e.lines.Done():
			return nil, fs.ErrClosed
		}
	}
}

// errSlow: the lock was granted again and again, each time too late.
var errSlow = errors.New("its answers take longer than half a TTL")

// answered notes what has come of asking, also for those in line behind it: not if it is
// the caller that had no time.
func (c *claim) answered(ctx context.Context, l *line.Line, err error) {
	c.engine.mu.Lock()
	if err == nil {
		c.why = nil
		if c.placed.IsZero() {
			c.placed = time.Now()
		}
	} else if c.placed.IsZero() {
		c.why = c.unanswered(err)
	}
	c.engine.mu.Unlock()
	if l != nil && ctx.Err() == nil {
		l.Answered(c.why)
	}
}

// unanswered says why no server has taken the claim in. Of an answer that has not come,
// the errors before tell more.
func (c *claim) unanswered(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		if c.why != nil {
			return c.why
		}
		return errNoAnswer
	}
	return err
}

// pause returns when to look again: when the first of those ahead expires, and at least
// three times per TTL, which also keeps the claim. Where no notice can come, the time
// depends on how long it has been looking, so that short waits end soon and long ones
// cost little.
func (c *claim) pause(look time.Duration) time.Duration {
	d := min(look, c.engine.ttl/3)
	if !c.engine.hears() {
		d = min(d, time.Since(c.placed)/4)
	}
	return max(d, minLook)
}

// ask sends the claim to the server. Once it is sent nothing stops it: if ctx ends first,
// ask returns, and flight is closed when the answer has come.
func (c *claim) ask(ctx context.Context) (Answer, lease.Instant, error) {
	type reply struct {
		Answer
		sent lease.Instant
		err  error
	}
	flight := make(chan struct{})
	c.flight = flight
	e := c.engine
	r, ok := ask(ctx, e.crew, func() (r reply) {
		defer close(flight)
		r.Answer, r.sent, r.err = e.server.Claim(ctx, &Claim{
			ID: c.id, Name: c.call.Name, Owner: e.Owner, Shared: c.call.Mode == locker.Shared, Try: c.try, TTL: e.ttl,
			Began: c.began, Under: c.under, Host: e.host, PID: e.pid, Note: c.note,
		})
		return r
	})
	if !ok {
		return Answer{}, 0, ctx.Err()
	}
	return r.Answer, r.sent, r.err
}

// findCircle gives up the claim, with an error, if it waits for itself.
func (c *claim) findCircle(ctx context.Context) error {
	circle, err := c.engine.circles.Circle(ctx, c.id)
	switch {
	case circle:
		return fmt.Errorf("%w: it waits for a lock under which it was called", locker.ErrDeadlock)
	case err != nil && !c.engine.server.Transient(err) && ctx.Err() == nil:
		return err
	}
	return nil // else the next look may tell
}

// abandon removes the claim from the server, behind the caller's back.
func (c *claim) abandon() {
	flight := c.flight
	if flight == nil {
		return
	}
	go func() {
		<-flight
		c.remove()
	}()
}

// remove removes the claim from the server. found tells whether it was there. repeated
// tells that an earlier try may have done it, whose answer was lost. After a TTL it gives
// up: the claim has expired.
func (c *claim) remove() (found, repeated bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.engine.ttl)
	defer cancel()
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		var sent lease.Instant
		found, sent, err = c.engine.server.Release(ctx, c.id, c.call.Name)
		if err == nil || !c.engine.server.Transient(err) {
			return found, repeated, err
		}
		repeated = repeated || sent != 0 && !c.engine.server.Refused(err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false, repeated, err
		}
	}
}
