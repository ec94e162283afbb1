// Package etcd is a [locker.Locker] on etcd: exclusive locks by name for any number
// of machines, first come, first served, with a fencing token.
//
// Each grant has a lease of its own; those of a client are renewed over one stream, every
// tenth of their TTL (at least a second, at most a third of it). A holder stops, its
// [locker.Held] context ends, when the renewals have not been answered for 90 % of the TTL,
// counted from when they were sent; the server lets the next one in after the whole TTL. So
// two holders never overlap as long as no clock runs 10 % fast or slow, whatever the network
// does. That needs a server of 3.5.13 or later, which renews a lease only as the leader; the
// client's log warns of an older one. Who deletes a holder's key or revokes its lease lets
// the next one in at once, and the holder hears of it some milliseconds later.
//
// A waiter goes on until its ctx ends, or the server says that its lease or key is gone.
//
// A holder that crashes keeps others out until its lease ends: the TTL, more where
// etcd elects a leader meanwhile, which renews every lease.
//
// Keys are Prefix + the escaped name + "/" + the lease's ID, as those of the stock
// concurrency.Mutex: a Mutex with the same prefix and name takes part in the queue.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/locker"
)

const (
	defaultTTL    = 15 * time.Second
	minTTL        = 2 * time.Second // etcd makes any shorter one this long
	defaultPrefix = "flockctx/"
)

// Options says how to lock. A nil *Options and the zero value are the defaults.
type Options struct {
	// TTL is how long the server keeps a lock without hearing from its holder.
	// Zero means 15 s; it is at least 2 s, and counts in whole seconds, rounded
	// up. etcd lengthens one that is below 1.5 times its election timeout. A
	// shorter one frees a crashed holder's lock sooner; a longer one keeps a lock
	// through a longer outage, of the network or of etcd's leader.
	TTL time.Duration

	// Prefix is what all keys begin with. Empty means "flockctx/". Programs that
	// share locks share it. No prefix may lie under another one in use, as
	// "flockctx/jobs/" does under "flockctx/": the locks of the one would be places
	// in the queue for the other's lock "jobs".
	Prefix string
}

// New returns a Locker that keeps its locks on the etcd cluster of client, which the
// caller closes when no lock is held or waited for any more. It does no I/O; what is
// wrong with opts is reported by Lock. It keeps nothing open between locks, save for 5 s
// the stream of renewals, which ends with the client. It is a [locker.Inspector].
//
// The locks are exclusive: for [locker.Shared] the error matches
// [errors.ErrUnsupported].
func New(client *clientv3.Client, opts *Options) locker.Locker {
	e := &engine{client: client, prefix: defaultPrefix, ttl: defaultTTL}
	if opts != nil {
		if opts.Prefix != "" {
			e.prefix = opts.Prefix
		}
		if opts.TTL != 0 {
			e.ttl = opts.TTL
		}
	}
	switch {
	case client == nil:
		e.invalid = errors.New("no client")
	case e.ttl < minTTL:
		e.invalid = fmt.Errorf("a TTL of %v, the smallest is %v", e.ttl, minTTL)
	}
	e.ttl = (e.ttl + time.Second - 1).Truncate(time.Second)
	return e
}

// engine implements locker.Locker.
type engine struct {
	client  *clientv3.Client
	prefix  string
	ttl     time.Duration // whole seconds
	invalid error         // what is wrong with the options

	versionOnce sync.Once
}

var _ locker.Inspector = (*engine)(nil)

func (e *engine) Traits() locker.Traits {
	// etcd looks for ended leases twice a second, and revokes them by consensus.
	return locker.Traits{CanLose: true, Cleanup: e.ttl + time.Second, FIFO: true, Fenced: true}
}

func (e *engine) Lock(ctx context.Context, name string, m locker.Mode) (locker.Held, error) {
	return e.lock(ctx, name, m, false)
}

func (e *engine) TryLock(ctx context.Context, name string, m locker.Mode) (locker.Held, error) {
	return e.lock(ctx, name, m, true)
}

func (e *engine) lock(ctx context.Context, name string, m locker.Mode, try bool) (locker.Held, error) {
	call, err := lease.Begin(ctx, "etcd", name, m)
	switch {
	case err != nil:
		return nil, err
	case e.invalid != nil:
		return nil, call.Failed(e.invalid)
	case m != locker.Exclusive:
		return nil, call.Failed(fmt.Errorf("mode %v: %w", m, errors.ErrUnsupported))
	}
	reach, cancel := lease.Reach(ctx)
	defer cancel()
	queue := e.queue(name)
	var c *claim
	if try {
		err = e.vacant(reach, queue)
	}
	if err == nil {
		c, err = e.claim(reach, call, queue)
	}
	if err == nil {
		e.versionOnce.Do(func() { go e.checkVersion() })
		var p position
		if p, err = c.enqueue(reach, try); err == nil {
			switch {
			case !try:
				err = c.acquire(ctx, p)
			case len(p.front) > 0: // the server is too old to compare a range
				err = errBusy
			default:
				err = c.acquire(reach, p)
			}
		}
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			c.Lose(errEnded)
		}
		if err == nil && ctx.Err() == nil {
			return c, nil
		}
		if c.Err() != nil && err != nil { // the place in the queue
			err = context.Cause(c.Proof)
		}
		c.abandon()
	}
	switch {
	case ctx.Err() != nil && (err == nil || c != nil && c.queued):
		return nil, call.Ended(ctx, nil)
	case ctx.Err() != nil:
		return nil, call.Ended(ctx, e.explain(err))
	case err == errBusy:
		return nil, call.Busy()
	case errors.Is(err, locker.ErrLost):
		return nil, err // which names the call already
	}
	return nil, call.Failed(e.explain(err))
}

// vacant returns errBusy if somebody holds or waits. A TryLock that made a lease first, and
// a key, would cost more and make other TryLocks fail meanwhile.
func (e *engine) vacant(ctx context.Context, queue string) error {
	resp, err := e.get(ctx, queue, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	if err == nil && len(resp.Kvs) > 0 {
		return errBusy
	}
	return err
}

// errBusy: a TryLock found the queue not empty. It does not leave the package.
var errBusy = errors.New("busy")
