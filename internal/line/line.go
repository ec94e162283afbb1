// Package line lets the goroutines of one process that want to lock one name wait for
// each other, so that only the first of them takes the server's time: a row, or a
// connection. The first leaves the line when it has the lock or gives up.
package line

import (
	"context"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/flockctx/flockctx/internal/lease"
)

// Lines are those of one Locker, by name.
type Lines struct {
	mu   sync.Mutex // guards what is below, and all in each Line
	all  map[string]*Line
	done chan struct{} // closed by Close
}

// A Line is those who want one name.
type Line struct {
	lines   *Lines
	name    string
	waiting []chan struct{} // those behind the first, each closed when it is first
	asked   chan struct{}   // closed when the first has had an answer, or has left
	why     error           // why no server has answered the first one, or nil
}

// New returns Lines in which nobody waits.
func New() *Lines { return &Lines{all: map[string]*Line{}, done: make(chan struct{})} }

// Done is closed by Close.
func (ls *Lines) Done() <-chan struct{} { return ls.done }

// Close ends all waits, with [fs.ErrClosed], and reports whether it is the first to do
// so.
func (ls *Lines) Close() bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.Closed() {
		return false
	}
	close(ls.done)
	return true
}

// Closed reports whether Close was called.
func (ls *Lines) Closed() bool {
	select {
	case <-ls.done:
		return true
	default:
		return false
	}
}

// Enter returns the line for name when the caller, whose wait began at the given time,
// is its first. why says why no server has answered those before it, or is nil; where
// that has lasted for longer than a call has to reach one, it is the error.
func (ls *Lines) Enter(ctx context.Context, name string, began time.Time) (l *Line, why, err error) {
	ls.mu.Lock()
	if l = ls.all[name]; l == nil {
		l = &Line{lines: ls, name: name, asked: make(chan struct{})}
		ls.all[name] = l
		ls.mu.Unlock()
		return l, nil, nil
	}
	turn := make(chan struct{})
	l.waiting = append(l.waiting, turn)
	ls.mu.Unlock()

	select {
	case <-turn:
	case <-ctx.Done():
		err = ctx.Err()
	case <-ls.done:
		err = fs.ErrClosed
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	switch i := slices.Index(l.waiting, turn); {
	case i >= 0:
		l.waiting = slices.Delete(l.waiting, i, i+1)
		return nil, l.why, err
	case err == nil && l.why != nil && time.Since(began) > lease.Patience:
		err = lease.Unavailable(l.why)
	case err == nil:
		return l, l.why, nil
	}
	l.leaveLocked()
	return nil, l.why, err
}

// Answered notes that the first one has had an answer, or why not.
func (l *Line) Answered(why error) {
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	l.why = why
	l.closeAsked()
}

func (l *Line) closeAsked() {
	select {
	case <-l.asked:
	default:
		close(l.asked)
	}
}

// Leave makes the next one the first.
func (l *Line) Leave() {
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	l.leaveLocked()
}

func (l *Line) leaveLocked() {
	l.closeAsked()
	if len(l.waiting) == 0 {
		delete(l.lines.all, l.name)
		return
	}
	l.asked = make(chan struct{})
	close(l.waiting[0])
	l.waiting = slices.Delete(l.waiting, 0, 1)
}

// LetIn waits until the first one for name, if there is one, has had its first answer.
func (ls *Lines) LetIn(ctx context.Context, name string) {
	ls.mu.Lock()
	l := ls.all[name]
	if l == nil {
		ls.mu.Unlock()
		return
	}
	asked := l.asked
	ls.mu.Unlock()
	select {
	case <-asked:
	case <-ctx.Done():
	}
}

// Waiting returns how many wait behind the first one for name.
func (ls *Lines) Waiting(name string) int {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.all[name]; l != nil {
		return len(l.waiting)
	}
	return 0
}
