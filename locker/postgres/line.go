package postgres

import (
	"context"
	"io/fs"
	"slices"
	"time"

	"github.com/flockctx/flockctx/internal/lease"
)

// A line is the goroutines of this process that want to lock one name. Only the first
// has a claim on the server, so that thousands that wait cost one row. It leaves the line
// when it has the lock or gives up.
//
// A claim's place in the server's queue is the moment at which its wait began, in this
// line or not. So the next one in the line is not behind those of other processes that
// came after it, once its claim is there; and Unlock lets it get there before it frees
// the lock.
//
// A call that is made under another lock does not stand in line: its wait could be part
// of a deadlock, so it must be seen in the rows.
type line struct {
	waiting []chan struct{} // those behind the first, each closed when it is first
	asked   chan struct{}   // closed when the first has had an answer, or has left
	why     error           // why the first has had no place on the server, or nil
}

// enter returns the line when the caller is its first.
func (c *claim) enter(ctx context.Context) (*line, error) {
	e, name := c.engine, c.call.Name
	e.mu.Lock()
	l := e.lines[name]
	if l == nil {
		l = &line{asked: make(chan struct{})}
		e.lines[name] = l
		e.mu.Unlock()
		return l, nil
	}
	turn := make(chan struct{})
	l.waiting = append(l.waiting, turn)
	e.mu.Unlock()

	var err error
	select {
	case <-turn:
		e.mu.Lock()
		defer e.mu.Unlock()
		// It may have waited long enough for a server that cannot be reached.
		if c.why = l.why; c.why != nil && time.Since(c.began) > lease.Patience {
			e.leaveLocked(name, l)
			return nil, lease.Unavailable(c.why)
		}
		return l, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-e.closed:
		err = fs.ErrClosed
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.why = l.why
	if i := slices.Index(l.waiting, turn); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	} else {
		e.leaveLocked(name, l) // its turn has come meanwhile
	}
	return nil, err
}

func (l *line) closeAsked() {
	select {
	case <-l.asked:
	default:
		close(l.asked)
	}
}

// leave makes the next one the first.
func (e *engine) leave(name string, l *line) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leaveLocked(name, l)
}

func (e *engine) leaveLocked(name string, l *line) {
	l.closeAsked()
	if len(l.waiting) == 0 {
		delete(e.lines, name)
		return
	}
	l.asked = make(chan struct{})
	close(l.waiting[0])
	l.waiting = slices.Delete(l.waiting, 0, 1)
}

// letIn waits until the first in line for name, if there is one, has its place on the
// server.
func (e *engine) letIn(ctx context.Context, name string) {
	e.mu.Lock()
	l := e.lines[name]
	if l == nil {
		e.mu.Unlock()
		return
	}
	asked := l.asked
	e.mu.Unlock()
	select {
	case <-asked:
	case <-ctx.Done():
	}
}
