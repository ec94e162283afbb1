package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/locker"
)

const (
	// settled is how long a claim must last to have its key watched: most locks are
	// shorter, and their release looks at the key itself.
	settled = 50 * time.Millisecond

	// noteAfter is how long a lock must be held for the time of its grant to be noted
	// in its key, where that is not when the key was put.
	noteAfter = time.Second
)

var (
	errDeleted = errors.New("its key has gone from the server")
	errEnded   = errors.New("its lease has ended on the server")
)

// A claim is a place in the queue for a name, and then the lock: a key with a lease
// of its own. Sharing one lease between claims, as sessions of the stock client do,
// makes a second Lock of a name succeed, and a transaction that comes late could put the
// key of a claim that has been given up: here it finds no lease.
//
// A claim that waits goes on until the server says that its lease or key is gone. One
// that holds ends before the server could say so, by its proof.
type claim struct {
	*lease.Proof
	engine *engine
	keeper *keeper
	call   *lease.Call
	id     clientv3.LeaseID
	ttl    time.Duration // as granted
	queue  string        // prefix of the keys of all claims to the name
	key    string
	rev    int64 // the key's create revision: its place in the queue; 0 until that is known
	queued bool  // somebody was in front
	epoch  string

	due       lease.Instant // for the next renewal; the keeper's
	confirmed chan struct{} // holds one: a renewal was answered

	freed lease.Answer
}

// claim asks for a lease. If ctx ends first, the request goes on without the caller
// and the lease is revoked as soon as its ID is known: cancelling it would leave a
// lease that nobody can name.
func (e *engine) claim(ctx context.Context, call *lease.Call, queue string) (*claim, error) {
	type answer struct {
		sent lease.Instant
		resp *clientv3.LeaseGrantResponse
		err  error
	}
	gctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	answers := make(chan answer, 1)
	go func() {
		var a answer
		a.err = e.insist(gctx, func(ctx context.Context) (err error) {
			// One that is asked for again may leave a lease behind, which
			// holds nothing and ends with its TTL.
			a.sent = lease.Now()
			a.resp, err = e.client.Grant(ctx, int64(e.ttl/time.Second))
			return err
		})
		answers <- a
	}()
	select {
	case a := <-answers:
		cancel()
		if a.err != nil {
			return nil, a.err
		}
		c := &claim{engine: e, call: call, id: a.resp.ID, queue: queue, confirmed: make(chan struct{}, 1)}
		c.ttl = time.Duration(a.resp.TTL) * time.Second
		c.key = queue + strconv.FormatInt(int64(c.id), 16)
		c.Proof = lease.Queue(ctx, c.ttl, a.sent, call.String())
		c.keeper = keep(c, a.sent)
		return c, nil
	case <-ctx.Done():
		go func() {
			defer cancel()
			defer time.AfterFunc(e.ttl, cancel).Stop()
			if a := <-answers; a.err == nil {
				limited, cancel := context.WithTimeout(gctx, e.ttl)
				defer cancel()
				e.revoke(limited, a.resp.ID)
			}
		}()
		return nil, ctx.Err()
	}
}

// mine is true while the key is there.
func (c *claim) mine() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(c.key), "=", c.rev)
}

// A position is what is in front of a claim, at a revision of the server's data.
type position struct {
	front []*mvccpb.KeyValue // the two next in front: the nearest first
	rev   int64
}

// enqueue puts the key. A transaction whose fate is unknown is sent again, which changes
// nothing if the first one was made.
func (c *claim) enqueue(ctx context.Context, try bool) (p position, err error) {
	missing := clientv3.Compare(clientv3.CreateRevision(c.key), "=", 0)
	if try {
		missing = clientv3.Compare(clientv3.CreateRevision(c.queue).WithPrefix(), "=", 0)
	}
	put := clientv3.OpPut(c.key, newOwner(ctx), clientv3.WithLease(c.id))
	own := clientv3.OpGet(c.key, clientv3.WithKeysOnly())
	last := clientv3.OpGet(c.queue, append(clientv3.WithLastCreate(), clientv3.WithLimit(3), clientv3.WithKeysOnly())...)
	resp, err := c.engine.txn(ctx, []clientv3.Cmp{missing}, []clientv3.Op{put, own, last}, []clientv3.Op{own, last})
	if err != nil {
		return p, err
	}
	n := len(resp.Responses)
	owns, lasts := resp.Responses[n-2].GetResponseRange().Kvs, resp.Responses[n-1].GetResponseRange().Kvs
	if len(owns) == 0 {
		return p, errBusy // only the comparison of a try fails without an own key
	}
	c.rev = owns[0].CreateRevision
	c.epoch = strconv.FormatUint(resp.Header.ClusterId, 16)
	if lasts[0].CreateRevision == c.rev {
		return position{lasts[1:], resp.Header.Revision}, nil
	}
	return c.look(ctx) // it was put by an earlier try, and others have come since
}

// look returns the claim's position.
func (c *claim) look(ctx context.Context) (p position, err error) {
	front := clientv3.OpGet(c.queue, append(clientv3.WithLastCreate(), clientv3.WithLimit(2), clientv3.WithMaxCreateRev(c.rev-1), clientv3.WithKeysOnly())...)
	resp, err := c.engine.txn(ctx, []clientv3.Cmp{c.mine()}, []clientv3.Op{front}, nil)
	if err != nil {
		return p, err
	}
	if !resp.Succeeded {
		c.Lose(errDeleted)
		return p, errDeleted
	}
	return position{resp.Responses[0].GetResponseRange().Kvs, resp.Header.Revision}, nil
}

// acquire waits from position p on until nobody is in front, and the lease is proved. It
// follows only the key next in front, so that a release wakes one waiter and not all.
func (c *claim) acquire(ctx context.Context, p position) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.Proof, cancel)() // the place is lost: stop waiting

	go c.tend()
	c.queued = len(p.front) > 0
	for len(p.front) > 0 {
		// Nobody comes in between: who is next to the one in front is first when that
		// has gone. The watch is from the next revision on: from the one that was read,
		// the server would take it for one that lags, and serve it 10 times a second.
		if c.follow(ctx, string(p.front[0].Key), p.rev+1) && len(p.front) == 1 {
			break
		}
		var err error
		if ctx.Err() != nil {
			return ctx.Err()
		} else if p, err = c.look(ctx); err != nil {
			return err
		}
	}
	// While the renewals are answered that much is proved. Where they were not, the
	// grant has no meaning before one is.
	for !c.Own(c.ttl / 2) {
		c.keeper.hurry(c)
		select {
		case <-c.confirmed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if c.queued {
		go c.noteGrant()
	}
	return nil
}

// tend ends the claim when its key is deleted by somebody else. The lease would live on,
// and its renewals tell nothing.
func (c *claim) tend() {
	if !pause(c.Proof, settled) {
		return
	}
	from := c.rev + 1
	for {
		if c.follow(c.Proof, c.key, from) {
			c.Lose(errDeleted)
			return
		}
		if c.Err() != nil {
			return // ask nothing in vain
		}
		// The watch broke off, its revision was compacted away, or it was silent: look,
		// then watch from there.
		resp, err := c.engine.get(c.Proof, c.key, clientv3.WithKeysOnly())
		if err != nil {
			if !pause(c.Proof, retryPause) {
				return
			}
			continue
		}
		if len(resp.Kvs) == 0 || resp.Kvs[0].CreateRevision != c.rev {
			c.Lose(errDeleted)
			return
		}
		from = resp.Header.Revision + 1
	}
}

// abandon gives up a claim in the background. The key goes with the lease: a
// transaction that is still on its way finds no lease to put it under. A key that
// somebody has put anew without the lease goes by itself.
func (c *claim) abandon() {
	c.Release()
	c.keeper.drop(c)
	go c.cleanUp(c.rev != 0)
}

// cleanUp takes the lease from the server, and the key if it may be there. What cannot be
// done within a TTL has been done by the end of the lease.
func (c *claim) cleanUp(key bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Proof), c.ttl)
	defer cancel()
	if key {
		c.engine.txn(ctx, []clientv3.Cmp{c.mine()}, []clientv3.Op{clientv3.OpDelete(c.key)}, nil)
	}
	c.engine.revoke(ctx, c.id)
}

// revoke ends a lease, whatever the server says first, until ctx ends.
func (e *engine) revoke(ctx context.Context, id clientv3.LeaseID) {
	for {
		err := e.insist(ctx, func(ctx context.Context) error {
			_, err := e.client.Revoke(ctx, id)
			return err
		})
		if err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound) || e.client.Ctx().Err() != nil || !pause(ctx, retryPause) {
			return
		}
	}
}

// Context is the proof, which ends with the ownership.
func (c *claim) Context() context.Context { return c.Proof }

func (c *claim) Valid() (time.Time, bool) { return c.Proof.Valid(), true }

// Token is the place in the queue, which rises from grant to grant.
func (c *claim) Token() (_ locker.Token, ok bool) {
	return locker.Token{Epoch: c.epoch, N: uint64(c.rev)}, true
}

func (c *claim) Unlock(ctx context.Context) error {
	return c.freed.Once(ctx, func() error { return c.release(ctx) }, c.unsure)
}

func (c *claim) unsure(err error) error {
	return fmt.Errorf("etcd: unlock %q: %w: %w", c.call.Name, locker.ErrUnsure, err)
}

// release deletes the key if it is the one that this claim has put, and revokes the lease
// beside it. A transaction without an answer is sent again, and may find its own work. Then
// the answer to the first one, if it still comes, tells; without that nobody knows whether
// the key had gone before.
func (c *claim) release(ctx context.Context) error {
	if lost := c.Release(); lost != nil {
		c.abandon()
		return lost
	}
	wait, cancel := context.WithTimeout(ctx, c.engine.Traits().Cleanup)
	defer cancel()                 // also of those that are not answered yet
	var sent, pending atomic.Int32 // transactions, and those without an answer
	deleted := make(chan struct{}) // closed by the one that does
	err := c.engine.insist(wait, func(limited context.Context) error {
		sent.Add(1)
		pending.Add(1)
		answer := make(chan error, 1)
		go func() {
			resp, err := c.engine.client.Txn(wait).If(c.mine()).Then(clientv3.OpDelete(c.key)).Commit()
			if err == nil && resp.Succeeded {
				close(deleted)
			}
			pending.Add(-1)
			answer <- err
		}()
		select {
		case err := <-answer:
			return err
		case <-limited.Done():
			return limited.Err()
		}
	})
	if err == nil && pending.Load() > 0 {
		select {
		case <-deleted:
		case <-time.After(maxAttempt):
		}
	}
	freed := false
	select {
	case <-deleted:
		freed = true
	default:
	}
	c.keeper.drop(c) // till now the lease was renewed, so that it does not end meanwhile
	go c.cleanUp(!freed)
	switch {
	case freed:
		return nil
	case err != nil:
		return c.unsure(err)
	case sent.Load() > 1:
		return c.unsure(errors.New("the key has gone, by this release or before it"))
	}
	return fmt.Errorf("%v: %w: %w", c.call, locker.ErrLost, errDeleted)
}
