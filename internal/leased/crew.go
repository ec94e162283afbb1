package leased

import (
	"context"
	"errors"
	"time"
)

// A crew runs functions whose caller may leave before they return. Its goroutines are kept
// for a while, with the stack that a client library has made them grow.
type crew struct{ work chan func() }

// spare is how long a goroutine of a crew waits for more to do.
const spare = 100 * time.Millisecond

// errNoAnswer: the server was asked, and ctx has ended.
var errNoAnswer = errors.New("no answer from the server")

// ask has the crew run fn, which asks the server, and returns what it does, or ok false if
// ctx ends before.
func ask[A any](ctx context.Context, c crew, fn func() A) (answer A, ok bool) {
	answers := make(chan A, 1)
	c.run(func() { answers <- fn() })
	select {
	case answer = <-answers:
		return answer, true
	case <-ctx.Done():
		return answer, false
	}
}

func (c crew) run(fn func()) {
	select {
	case c.work <- fn:
	default:
		go c.member(fn)
	}
}

func (c crew) member(fn func()) {
	t := time.NewTimer(spare)
	defer t.Stop()
	for {
		fn()
		t.Reset(spare)
		select {
		case fn = <-c.work:
		case <-t.C:
			return
		}
	}
}
