// Package advisory is a locker.Locker on PostgreSQL's advisory locks: postgres.Advisory,
// whose documentation says what it promises.
package advisory

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/internal/line"
	"github.com/flockctx/flockctx/internal/lineage"
	"github.com/flockctx/flockctx/locker"
)

const (
	defaultTTL      = 15 * time.Second
	minTTL          = time.Second
	defaultSequence = "flockctx_token"
	defaultIdle     = 2
	minVersion      = 14 // the first with client_connection_check_interval and idle_session_timeout
)

// Options says how to lock. A nil *Options and the zero value are the defaults.
type Options struct {
	// TTL is how long the server keeps a lock without hearing from its holder.
	// Zero means 15 s; it is at least 1 s. A holder whose process or connection
	// ends frees its lock at once, whatever the TTL.
	TTL time.Duration

	// Sequence names the sequence that the fencing tokens come from, maybe with
	// its schema and a dot. Empty means "flockctx_token". It is created if it is
	// missing, which needs the right to create in that schema; otherwise create
	// it with CREATE SEQUENCE and grant USAGE on it.
	Sequence string

	// Idle is how many connections at most stay open for the next Lock, each for
	// half a TTL after an Unlock. Zero means 2; a negative number none.
	Idle int

	// MaxConns is how many connections at most are open. Zero means no limit.
	MaxConns int
}

// New returns a Locker that keeps its locks in the database that dsn leads to, a URL
// or the key=value form of libpq. It does no I/O; what is wrong with dsn or opts is
// reported by Lock.
//
// dsn must lead to the primary, without a pooler in between. Programs that share locks
// share the database and the sequence.
func New(dsn string, opts *Options) locker.Locker {
	e := &engine{ttl: defaultTTL, sequence: defaultSequence, maxIdle: defaultIdle, lines: line.New()}
	e.open, e.close = context.WithCancel(context.Background())
	if opts != nil {
		if opts.TTL != 0 {
			e.ttl = opts.TTL
		}
		if opts.Sequence != "" {
			e.sequence = opts.Sequence
		}
		if opts.Idle != 0 {
			e.maxIdle = max(opts.Idle, 0)
		}
		if opts.MaxConns > 0 {
			e.slots = make(chan struct{}, opts.MaxConns)
		}
	}
	if e.ttl < minTTL {
		e.invalid = fmt.Errorf("a TTL of %v, the smallest is %v", e.ttl, minTTL)
		return e
	}
	e.sequence = pgx.Identifier(strings.Split(e.sequence, ".")).Sanitize()
	if e.config, e.invalid = pgconn.ParseConfig(dsn); e.invalid != nil {
		return e
	}
	// The kernel tells a waiter of a dead network: it has a query under way, so
	// it cannot ask.
	d := &net.Dialer{Control: dialControl(e.ttl), KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: e.ttl / 3, Interval: e.ttl / 3, Count: 3}}
	e.config.DialFunc = d.DialContext
	if e.config.RuntimeParams["application_name"] == "" {
		e.config.RuntimeParams["application_name"] = "flockctx"
	}
	return e
}

// engine implements locker.Locker.
type engine struct {
	config   *pgconn.Config
	ttl      time.Duration
	sequence string // quoted
	maxIdle  int
	invalid  error // what is wrong with the options

	lines   *line.Lines     // of the goroutines that wait
	open    context.Context // ends with close
	close   context.CancelFunc
	slots   chan struct{} // has an element for each connection; nil: there is no limit
	starved atomic.Int32  // how many wait for a slot
	checked atomic.Bool   // the sequence exists and serves

	mu     sync.Mutex // guards the fields below
	idle   []*session // the last one was used last
	server string     // the last one seen
	quiet  time.Time  // no grant before
}

func (e *engine) Traits() locker.Traits {
	return locker.Traits{CanLose: true, Cleanup: e.ttl + time.Second, Shared: true, Fenced: true, Deadlocks: true}
}

func (e *engine) Lock(ctx context.Context, name string, m locker.Mode) (locker.Held, error) {
	return e.lock(ctx, name, m, false)
}

func (e *engine) TryLock(ctx context.Context, name string, m locker.Mode) (locker.Held, error) {
	return e.lock(ctx, name, m, true)
}

func (e *engine) lock(ctx context.Context, name string, m locker.Mode, try bool) (locker.Held, error) {
	call, err := lease.Begin(ctx, "postgres", name, m)
	switch {
	case err != nil:
		return nil, err
	case e.invalid != nil:
		return nil, call.Failed(e.invalid)
	case e.open.Err() != nil:
		return nil, call.Failed(fs.ErrClosed)
	}
	wait, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.open, func() { cancel(fs.ErrClosed) })()
	a := &attempt{engine: e, call: call, try: try, parent: lineage.From(ctx), began: time.Now()}
	a.outer = e.outer(a.parent)
	h, err := a.acquire(wait)
	switch {
	case ctx.Err() != nil:
		if h != nil {
			h.end()
		}
		return nil, call.Ended(ctx, a.unanswered(err))
	case err != nil && e.open.Err() != nil:
		return nil, call.Failed(fs.ErrClosed)
	case err == errBusy:
		return nil, call.Busy()
	case err != nil:
		return nil, call.Failed(err)
	}
	go h.keep()
	return h, nil
}

// errBusy: a TryLock found the lock taken. It does not leave the package.
var errBusy = errors.New("busy")

// Key returns the advisory lock of a name: the first 8 bytes of its SHA-256.
func Key(name string) int64 {
	sum := sha256.Sum256([]byte(name))
	return int64(binary.BigEndian.Uint64(sum[:]))
}

// take returns an idle session, or nil.
func (e *engine) take() *session {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.idle) > 0 {
		s := e.idle[len(e.idle)-1]
		e.idle = e.idle[:len(e.idle)-1]
		// A timer that has fired is about to close the session.
		if s.expiry.Stop() && s.alive() {
			return s
		}
		s.close()
	}
	return nil
}

// put keeps a session, which holds no lock, for the next one.
func (e *engine) put(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.idle) >= e.maxIdle || e.starved.Load() > 0 || e.open.Err() != nil {
		s.quit()
		return
	}
	// The server ends it after a TTL.
	s.expiry = time.AfterFunc(e.ttl/2, func() {
		e.mu.Lock()
		for i, other := range e.idle {
			if other == s {
				e.idle = append(e.idle[:i], e.idle[i+1:]...)
				break
			}
		}
		e.mu.Unlock()
		s.quit()
	})
	e.idle = append(e.idle, s)
}

// slot waits until one more connection may be opened.
func (e *engine) slot(ctx context.Context) error {
	if e.slots == nil {
		return nil
	}
	e.starved.Add(1)
	defer e.starved.Add(-1)
	if s := e.take(); s != nil { // became idle meanwhile
		s.quit()
	}
	select {
	case e.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *engine) freeSlot() {
	if e.slots != nil {
		<-e.slots
	}
}

// settle closes a session, with an error that will pass, as long as somebody may believe
// in a lock that the server has forgotten: for a TTL after the server has started, or
// has become another one, by a start or a promotion, since the last session.
func (e *engine) settle(s *session) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch e.server {
	case s.server:
	case "":
		e.quiet = time.Now().Add(e.ttl - s.age)
	default:
		e.quiet = time.Now().Add(e.ttl)
	}
	e.server = s.server
	if left := time.Until(e.quiet); left > 0 {
		s.quit()
		return fmt.Errorf("the server was started or promoted not long ago, and locks of before may be in use for another %v", left.Round(time.Millisecond))
	}
	return nil
}

// Close ends the waits, with fs.ErrClosed, and the idle connections. Locks that are held
// stay so until their Unlock.
func (e *engine) Close() error {
	e.close()
	e.lines.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.idle {
		s.expiry.Stop()
		s.quit()
	}
	e.idle = nil
	return nil
}
