// Package leased is the engine of the Lockers whose server keeps claims with a lease, and
// serves them first come, first served: PostgreSQL's rows and Redis. A [Server] is what
// differs. docs/postgres.md says what happens when something fails.
package leased

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/internal/line"
	"github.com/flockctx/flockctx/locker"
)

// DefaultTTL is the TTL where Options have none.
const DefaultTTL = 15 * time.Second

const minTTL = time.Second

// A Server keeps claims. Each method sends one request, and can be repeated when its
// answer is lost. An end of ctx ends the wait for a connection, but not a request that was
// sent: it would go on on the server, and nobody would know how it ended. sent is when it
// was sent, and 0 if it was not.
type Server interface {
	// Claim takes the lock, or a place in the queue for it, or keeps what the claim
	// has, for a TTL. A claim to try that would have to wait leaves nothing.
	Claim(ctx context.Context, c *Claim) (a Answer, sent lease.Instant, err error)

	// Release removes a claim, and tells those that need not wait any more.
	Release(ctx context.Context, id, name string) (found bool, sent lease.Instant, err error)

	// Renew keeps what the Locker holds, the names by ID, for another TTL, and
	// returns the IDs of those that the server has.
	Renew(ctx context.Context, owner string, ttl time.Duration, names map[string]string) (ids []string, sent lease.Instant, err error)

	// Sweep removes what crashed processes have left.
	Sweep(ctx context.Context)

	// Hear calls open when notices begin to come, and again where some may have been
	// missed, and notice for each claim of the Locker that need not wait any more. It
	// returns when the subscription or ctx ends, with ErrDeaf where there is none.
	Hear(ctx context.Context, owner string, open func(), notice func(id string)) error

	// Holders returns who holds the name, and then who waits.
	Holders(ctx context.Context, name string) ([]locker.Holder, error)

	// Transient reports whether err may pass: the server cannot be reached, or cannot
	// serve now.
	Transient(err error) bool

	// Refused reports whether a request that failed with err has certainly done
	// nothing.
	Refused(err error) bool
}

// A Circler finds claims that wait for themselves.
type Circler interface {
	// Circle gives up a claim that waits, through whatever others, for one under
	// which it was called, and reports whether it did.
	Circle(ctx context.Context, id string) (bool, error)
}

// ErrDeaf says that no notices can be had.
var ErrDeaf = errors.New("no notices")

// A Claim is what a server is told of a call that wants a lock.
type Claim struct {
	ID, Name, Owner string
	Shared, Try     bool
	TTL             time.Duration
	Began           time.Time // the wait
	Under           []string  // the claims under which it was called
	Host            string
	PID             int
	Note            string
}

// An Answer is what a server says of a claim.
type Answer struct {
	Granted bool
	Token   uint64        // 0: shared
	Look    time.Duration // where not granted: until it is worth looking again, without a notice
}

// Options are those of an Engine.
type Options struct {
	Name    string        // of the engine, in errors and tokens
	TTL     time.Duration // 0: 15 s
	Every   time.Duration // renew at least that often; 0: a third of the TTL
	Invalid error         // what is wrong otherwise
}

// New returns an Engine. It does no I/O; what is wrong is reported by Lock.
func New(s Server, opts Options) *Engine {
	e := &Engine{
		server: s, crew: crew{make(chan func())}, name: opts.Name, ttl: opts.TTL, Owner: rand.Text(), pid: os.Getpid(), lines: line.New(),
		invalid: opts.Invalid, held: map[string]*held{}, waiting: map[string]*claim{},
	}
	e.circles, _ = s.(Circler)
	e.host, _ = os.Hostname()
	if e.ttl == 0 {
		e.ttl = DefaultTTL
	}
	if e.every = e.ttl / 3; opts.Every > 0 {
		e.every = min(e.every, opts.Every)
	}
	if e.ttl < minTTL && e.invalid == nil {
		e.invalid = fmt.Errorf("a TTL of %v, the smallest is %v", e.ttl, minTTL)
	}
	return e
}

// Engine implements locker.Locker, locker.Inspector and io.Closer. It has a timer while
// locks are held (renew.go), a goroutine while others are waited for (listen.go), and
// one for each request whose caller may leave before the answer.
type Engine struct {
	Owner   string // the name of this Locker on the server
	server  Server
	crew    crew    // sends requests
	circles Circler // nil: the server finds none
	name    string
	ttl     time.Duration
	every   time.Duration // how often to renew
	host    string
	pid     int
	invalid error       // what is wrong with the options
	lines   *line.Lines // of the goroutines that wait

	mu      sync.Mutex        // guards the fields below
	waiting map[string]*claim // on the server, by ID
	held    map[string]*held  // by ID
	renewal *time.Timer       // nil while nothing is held
	swept   time.Time         // when this Locker last removed what nobody wants
	ears    ears
}

var (
	_ locker.Inspector           = (*Engine)(nil)
	_ interface{ Close() error } = (*Engine)(nil)
)

func (e *Engine) Traits() locker.Traits {
	return locker.Traits{CanLose: true, Cleanup: e.ttl + time.Second, Shared: true, FIFO: true, Fenced: true, Deadlocks: e.circles != nil}
}

func (e *Engine) Lock(ctx context.Context, name string, m locker.Mode) (locker.Held, error) {
	return e.lock(ctx, name, m, false)
}

func (e *Engine) TryLock(ctx context.Context, name string, m locker.Mode) (locker.Held, error) {
	return e.lock(ctx, name, m, true)
}

func (e *Engine) lock(ctx context.Context, name string, m locker.Mode, try bool) (locker.Held, error) {
	call, err := lease.Begin(ctx, e.name, name, m)
	switch {
	case err != nil:
		return nil, err
	case e.invalid != nil:
		return nil, call.Failed(e.invalid)
	case e.lines.Closed():
		return nil, call.Failed(fs.ErrClosed)
	}
	c := e.newClaim(ctx, call, try)
	h, err := c.acquire(ctx)
	switch {
	case ctx.Err() != nil:
		if h != nil {
			go h.Unlock(context.WithoutCancel(ctx))
		}
		return nil, call.Ended(ctx, c.why)
	case err == errBusy:
		return nil, call.Busy()
	case err != nil:
		return nil, call.Failed(err)
	}
	return h, nil
}

// errBusy: a TryLock found the lock taken. It does not leave the package.
var errBusy = errors.New("busy")

// Close ends the waits, with fs.ErrClosed, and the subscription to notices. Locks that
// are held are renewed until their Unlock. What the server is reached by stays open.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lines.Close() {
		e.ears.cover()
	}
	return nil
}

// Holders implements locker.Inspector. Of the goroutines of one Locker that wait for
// one name, only the first is known to the server; those that wait under another lock
// all are.
func (e *Engine) Holders(ctx context.Context, name string) ([]locker.Holder, error) {
	fail := func(err error) ([]locker.Holder, error) {
		return nil, fmt.Errorf("%s: holders of %.64q: %w", e.name, name, err)
	}
	if e.invalid != nil {
		return fail(e.invalid)
	}
	limit, cancel := lease.Reach(ctx)
	defer cancel()
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		holders, err := e.holders(limit, name)
		switch {
		case err == nil:
			return holders, nil
		case limit.Err() == nil && !e.server.Transient(err):
			return fail(err)
		}
		select {
		case <-time.After(pause):
		case <-limit.Done():
			if ctx.Err() != nil {
				return fail(fmt.Errorf("%w (%w)", ctx.Err(), lease.Unavailable(err)))
			}
			return fail(lease.Unavailable(err))
		}
	}
}

// holders asks the server once, and not for longer than ctx lasts.
func (e *Engine) holders(ctx context.Context, name string) ([]locker.Holder, error) {
	type reply struct {
		holders []locker.Holder
		err     error
	}
	r, ok := ask(ctx, e.crew, func() (r reply) {
		r.holders, r.err = e.server.Holders(ctx, name)
		return r
	})
	if !ok {
		return nil, errNoAnswer
	}
	return r.holders, r.err
}

// Waiting returns how many calls wait for name: in line, or on the server. It is for
// tests.
func (e *Engine) Waiting(name string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n = e.lines.Waiting(name)
	for _, c := range e.waiting {
		if c.call.Name == name && !c.placed.IsZero() {
			n++
		}
	}
	return n
}
