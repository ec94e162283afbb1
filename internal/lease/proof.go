// Package lease is what the adapters for servers share: the account of ownership
// that is proved only for a while, and the errors of a wait.
package lease

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flockctx/flockctx/locker"
)

// An Instant is a reading of the clock of Now.
type Instant time.Duration

var start = time.Now()

// Margin is the part of a TTL, as a divisor, that a holder gives away: it stops
// before the server lets the next one in. It covers clocks that run at different
// rates, and the time from the end of a context to the last effect under it.
const Margin = 10

// A Proof is ownership that a server granted for a TTL, counted from the moment at
// which the request was sent: the server cannot have counted from an earlier one.
// (Counting from the answer, as stock clients do, adds the time that the answer
// spent in the network, and with it a second holder.)
//
// A Proof ends once: by Lose, by Release, or because its time is up. One who still waits
// for the ownership has a Proof too, which keeps the account, but which no silence ends:
// as long as the server does not say that the place in its queue is gone, it may be there.
type Proof struct {
	context.Context // ends with the proof, its Err looks at the clock
	cancel          context.CancelCauseFunc
	window          time.Duration
	what            string
	limit           atomic.Int64 // the Instant at which the time is up
	owned           atomic.Bool  // the limit counts

	mu    sync.Mutex  // guards the fields below and the order of cancel
	timer *time.Timer // runs from Own on
	ended bool
}

// New returns a proof with the values of ctx, of a grant with the given TTL that was
// requested at sent. what names it in errors.
func New(ctx context.Context, ttl time.Duration, sent Instant, what string) *Proof {
	p := Queue(ctx, ttl, sent, what)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ownLocked()
	return p
}

// Queue returns what New does for one who does not own yet, but may come to. Own makes
// it an owner.
func Queue(ctx context.Context, ttl time.Duration, sent Instant, what string) *Proof {
	p := &Proof{window: ttl - ttl/Margin, what: what}
	p.Context, p.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	p.limit.Store(int64(sent) + int64(p.window))
	return p
}

// Own makes one who waits the owner. It reports false, and changes nothing, if less than
// least is proved, or the proof has ended: the server is to be asked once more.
func (p *Proof) Own(least time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || p.left() < least {
		return false
	}
	p.ownLocked()
	return true
}

func (p *Proof) ownLocked() {
	p.owned.Store(true)
	p.timer = time.AfterFunc(p.pause(), p.tick)
}

func (p *Proof) left() time.Duration { return time.Duration(p.limit.Load() - int64(Now())) }

// late reports whether an owner's time is up.
func (p *Proof) late() bool { return p.owned.Load() && p.left() <= 0 }

// slice is the longest that the timer runs. It counts Go's clock, which stands still
// while the machine is suspended: set for the whole time, it would end a context as much
// too late as the machine was suspended.
const slice = time.Second

func (p *Proof) pause() time.Duration { return min(p.left(), slice) }

// tick is the timer's function. The timer may be late but never early.
func (p *Proof) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checkLocked()
}

// checkLocked ends the proof if its time is up, and else winds the timer.
func (p *Proof) checkLocked() bool {
	if p.ended {
		return false
	}
	if p.late() {
		p.endLocked(p.lost(fmt.Errorf("the server did not confirm it within %v", p.window)))
		return false
	}
	if p.timer != nil {
		p.timer.Reset(p.pause())
	}
	return true
}

func (p *Proof) endLocked(cause error) {
	p.ended = true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.cancel(cause)
}

func (p *Proof) lost(why error) error {
	return fmt.Errorf("%s: %w: %w", p.what, locker.ErrLost, why)
}

// Err is that of a context. It looks at the clock, so that code which runs before
// the timer, such as after a SIGCONT or a suspend, sees the truth.
func (p *Proof) Err() error {
	if p.Context.Err() == nil && p.late() {
		p.tick()
	}
	return p.Context.Err()
}

// Extend notes that the server confirmed the ownership in its answer to a request
// that was sent at the given instant. It reports whether the proof still lasts: an
// answer that comes after the time was up revives nothing.
func (p *Proof) Extend(sent Instant) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	if !p.late() {
		p.limit.Store(max(p.limit.Load(), int64(sent)+int64(p.window)))
	}
	return p.checkLocked()
}

// Lose ends the proof because of why.
func (p *Proof) Lose(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.endLocked(p.lost(why))
	}
}

// Release ends the proof by the holder's wish. It returns the error to report if the
// ownership had ended before.
func (p *Proof) Release() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.checkLocked() {
		p.endLocked(locker.ErrReleased)
		return nil
	}
	return context.Cause(p.Context)
}

// Valid returns the instant at which the time is up, or one in the past if the proof
// has ended.
func (p *Proof) Valid() time.Time {
	now := time.Now()
	if p.Err() != nil {
		return now.Add(min(p.left(), 0))
	}
	return now.Add(p.left())
}
