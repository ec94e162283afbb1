package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// ears are a connection on which the server tells that a claim need not wait any more.
// Nothing depends on them.
type ears struct {
	stop context.CancelFunc // ends the goroutine; nil: there is none
	rest *time.Timer        // calls stop a TTL after the last wait; nil: somebody waits
	open bool               // the server has taken the subscription
	deaf bool               // there are no notices over what lies in between
}

// hears reports whether notices come.
func (e *engine) hears() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ears.open
}

// listen sees to it that notices come, if they can, while somebody waits.
func (e *engine) listen() {
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
func (r *ears) restLocked(e *engine) {
	if len(e.waiting) > 0 || r.stop == nil || r.rest != nil {
		return
	}
	r.rest = time.AfterFunc(e.ttl, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.waiting) == 0 {
			r.cover()
		}
	})
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
func (e *engine) hear(ctx context.Context) {
	for {
		err := e.subscribe(ctx)
		e.mu.Lock()
		if ctx.Err() != nil {
			e.mu.Unlock()
			return
		}
		e.ears.open = false
		if errors.Is(err, errDeaf) {
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

// subscribe passes on notices until the connection or ctx ends.
func (e *engine) subscribe(ctx context.Context) error {
	conn, err := e.connect(ctx)
	if err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn.Close(cctx)
	}()
	e.mu.Lock()
	if ctx.Err() == nil {
		e.ears.open = true
	}
	for _, c := range e.waiting {
		c.poke() // a notice may have been missed
	}
	e.mu.Unlock()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		e.mu.Lock()
		if c := e.waiting[n.Payload]; c != nil {
			c.poke()
		}
		e.mu.Unlock()
	}
}

// connect returns a connection that listens. A pooler is no place for that: notices go
// to whichever client is served by then, and its next owner would have to take them.
func (e *engine) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, max(e.ttl/3, 2*time.Second))
	defer cancel()
	conn, err := e.db.dial(ctx)
	if err != nil {
		return nil, err
	}
	var pid uint32
	err = conn.QueryRow(ctx, "select pg_backend_pid()", pgx.QueryExecModeSimpleProtocol).Scan(&pid)
	if err == nil && pid != conn.PgConn().PID() {
		err = errDeaf
	}
	if err == nil {
		_, err = conn.Exec(ctx, `listen "flockctx_`+e.owner+`"`)
	}
	if err != nil {
		conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}

// poke has the claim look again.
func (c *claim) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
