package leased

import "time"

// A crew runs functions whose caller may leave before they return. Its goroutines are kept
// for a while, with the stack that a client library has made them grow.
type crew struct{ work chan func() }

// spare is how long a goroutine of a crew waits for more to do.
const spare = 100 * time.Millisecond

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
