package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/locker"
)

const (
	// grantPatience bounds the wait for a lease where ctx has no deadline.
	grantPatience = 10 * time.Second

	// maxAttempt bounds the wait for the answer of one server.
	maxAttempt = 2 * time.Second

	// retryPause lies between two tries of a request that failed at once.
	retryPause = 50 * time.Millisecond
)

// A claim is a place in the queue for a name, and then the lock: a key with a lease
// of its own. Sharing one lease between claims, as sessions of the stock client do,
// makes a second Lock of a name succeed, and one lost renewal lose them all.
//
// The lease is proved from its grant on, so a waiter whose place is lost stops
// waiting, and a holder has no unproved moment after its grant.
type claim struct {
	*lease.Proof
	engine *engine
	call   *lease.Call
	id     clientv3.LeaseID
	ttl    time.Duration // as granted
	queue  string        // prefix of the keys of all claims to the name
	key    string
	queued bool  // somebody was in front
	ended  error // the loss that ended the wait

	token locker.Token // valid once held
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
	if _, ok := ctx.Deadline(); !ok {
		defer time.AfterFunc(grantPatience, cancel).Stop()
	}
	answers := make(chan answer, 1)
	go func() {
		var a answer
		a.err = e.insist(gctx, func(ctx context.Context) (err error) {
			// One that is asked for again may leave a lease behind, which
			// holds nothing and ends with its TTL.
			sent := lease.Now()
			if a.resp, err = e.client.Grant(ctx, int64(e.ttl/time.Second)); err == nil {
				a.sent = sent
			}
			return err
		})
		answers <- a
	}()
	select {
	case a := <-answers:
		gaveUp := gctx.Err() != nil
		cancel()
		switch {
		case a.err != nil && gaveUp:
			return nil, fmt.Errorf("%w within %v", e.silence(), grantPatience)
		case a.err != nil:
			return nil, a.err
		}
		c := &claim{engine: e, call: call, id: a.resp.ID, queue: queue}
		c.ttl = time.Duration(a.resp.TTL) * time.Second
		c.key = queue + strconv.FormatInt(int64(c.id), 16)
		c.Proof = lease.New(ctx, c.ttl, a.sent, call.String())
		go c.renew()
		return c, nil
	case <-ctx.Done():
		go func() {
			defer cancel()
			defer time.AfterFunc(e.ttl, cancel).Stop()
			if a := <-answers; a.err == nil {
				e.dispose(ctx, a.resp.ID, time.Duration(a.resp.TTL)*time.Second)
			}
		}()
		return nil, ctx.Err()
	}
}

// acquire puts the claim's key in the queue and waits until it is first.
func (c *claim) acquire(ctx context.Context, try bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.Proof, cancel)() // the place is lost: stop waiting

	rev, first, err := c.enqueue(ctx, try)
	if err == nil {
		go c.watch(rev)
		switch {
		case first:
		case try: // the server is too old to compare a range
			err = errBusy
		default:
			err = c.wait(ctx, rev)
		}
	}
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		c.Lose(errEnded)
	}
	if c.Err() != nil {
		c.ended = context.Cause(c.Proof)
		return c.ended
	}
	return err
}

// enqueue puts the key and returns its revision, which is its place in the queue and
// the fencing token, and whether that place is the first. A transaction whose fate is
// unknown is sent again, which changes nothing if the first one was made.
func (c *claim) enqueue(ctx context.Context, try bool) (rev int64, first bool, err error) {
	if try {
		// A look first: a key that is put behind a holder and taken back would
		// make other TryLocks fail meanwhile.
		resp, err := c.engine.get(ctx, c.queue, clientv3.WithPrefix(), clientv3.WithLimit(1))
		if err != nil {
			return 0, false, err
		}
		if len(resp.Kvs) > 0 {
			return 0, false, errBusy
		}
	}
	missing := clientv3.Compare(clientv3.CreateRevision(c.key), "=", 0)
	if try {
		missing = clientv3.Compare(clientv3.CreateRevision(c.queue).WithPrefix(), "=", 0)
	}
	put := clientv3.OpPut(c.key, whoami(), clientv3.WithLease(c.id))
	own := clientv3.OpGet(c.key, clientv3.WithKeysOnly())
	head := clientv3.OpGet(c.queue, append(clientv3.WithFirstCreate(), clientv3.WithKeysOnly())...)
	var resp *clientv3.TxnResponse
	err = c.engine.insist(ctx, func(ctx context.Context) (err error) {
		resp, err = c.engine.client.Txn(ctx).If(missing).Then(put, own, head).Else(own, head).Commit()
		return err
	})
	if err != nil {
		return 0, false, err
	}
	n := len(resp.Responses)
	owns, heads := resp.Responses[n-2].GetResponseRange().Kvs, resp.Responses[n-1].GetResponseRange().Kvs
	if len(owns) == 0 || len(heads) == 0 {
		return 0, false, errBusy // only the comparison of a try fails without an own key
	}
	rev = owns[0].CreateRevision
	c.token = locker.Token{Epoch: strconv.FormatUint(resp.Header.ClusterId, 16), N: uint64(rev)}
	return rev, heads[0].CreateRevision == rev, nil
}

// insist makes a request until it is answered or ctx ends. Each try has a limit: a
// frozen server never answers, and the next one in turn may be well. So what is asked
// must do no harm if it is done twice.
func (e *engine) insist(ctx context.Context, request func(context.Context) error) error {
	for {
		limited, cancel := context.WithTimeout(ctx, min(e.ttl/3, maxAttempt))
		err := request(limited)
		expired := limited.Err() != nil
		cancel()
		switch {
		case err == nil, ctx.Err() != nil:
			return err
		case expired:
		case code(err) == codes.Unavailable:
			if !pause(ctx) {
				return err
			}
		default:
			return err
		}
	}
}

// get reads keys, without their values.
func (e *engine) get(ctx context.Context, key string, opts ...clientv3.OpOption) (resp *clientv3.GetResponse, err error) {
	err = e.insist(ctx, func(ctx context.Context) (err error) {
		resp, err = e.client.Get(ctx, key, append(opts, clientv3.WithKeysOnly())...)
		return err
	})
	return resp, err
}

// pause waits a little. It reports whether ctx goes on.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(retryPause):
		return true
	}
}

// wait waits until no key is in front of the one of revision rev. It watches only
// the key next in front, so that a release wakes one waiter and not all.
func (c *claim) wait(ctx context.Context, rev int64) error {
	inFront := clientv3.OpGet(c.queue, append(clientv3.WithLastCreate(), clientv3.WithMaxCreateRev(rev-1), clientv3.WithKeysOnly())...)
	for {
		var resp *clientv3.TxnResponse
		err := c.engine.insist(ctx, func(ctx context.Context) (err error) {
			resp, err = c.engine.client.Txn(ctx).Then(inFront, clientv3.OpGet(c.key, clientv3.WithKeysOnly())).Commit()
			return err
		})
		if err != nil {
			return err
		}
		own := resp.Responses[1].GetResponseRange().Kvs
		if len(own) == 0 || own[0].CreateRevision != rev {
			c.Lose(errDeleted)
			return errDeleted
		}
		front := resp.Responses[0].GetResponseRange().Kvs
		if len(front) == 0 {
			return nil
		}
		c.queued = true
		if err := c.waitGone(ctx, string(front[0].Key), resp.Header.Revision+1); err != nil {
			return err
		}
	}
}

// waitGone returns nil once key may have been deleted at revision rev or later.
func (c *claim) waitGone(ctx context.Context, key string, rev int64) error {
	limited, cancel := context.WithTimeout(ctx, c.ttl)
	defer cancel()
	for resp := range c.follow(limited, key, rev) {
		if deleted(resp) {
			return nil
		}
	}
	if limited.Err() == nil {
		pause(ctx) // the watch broke off
	}
	return ctx.Err()
}

// follow watches key for deletions at revision rev or later. A server that is frozen
// sends nothing, and keeps Watch itself waiting too: so ctx must have a limit, after
// which the caller looks at the key. Without a leader the server would wait for one in
// silence.
func (c *claim) follow(ctx context.Context, key string, rev int64) clientv3.WatchChan {
	return c.engine.client.Watch(clientv3.WithRequireLeader(ctx), key, clientv3.WithRev(rev), clientv3.WithFilterPut())
}

func deleted(resp clientv3.WatchResponse) bool {
	for _, ev := range resp.Events {
		if ev.Type == mvccpb.Event_DELETE {
			return true
		}
	}
	return false
}

var (
	errDeleted = errors.New("its key has gone from the server")
	errEnded   = errors.New("its lease has ended on the server")
)

// watch ends the proof when the own key is deleted by somebody else. The lease would
// live on, and its renewals tell nothing.
func (c *claim) watch(rev int64) {
	from := rev + 1
	for {
		ctx, cancel := context.WithTimeout(c.Proof, c.ttl)
		for resp := range c.follow(ctx, c.key, from) {
			if deleted(resp) {
				c.Lose(errDeleted)
			}
		}
		broke := ctx.Err() == nil
		cancel()
		if broke {
			pause(c.Proof)
		}
		if c.Err() != nil {
			return
		}
		// The watch broke off, its revision was compacted away, or it may be
		// silent: look, then watch from there.
		resp, err := c.engine.get(c.Proof, c.key)
		if err != nil {
			continue
		}
		if len(resp.Kvs) == 0 || resp.Kvs[0].CreateRevision != rev {
			c.Lose(errDeleted)
			return
		}
		from = resp.Header.Revision + 1
	}
}

// renew keeps the lease alive until the proof ends. It is neither the client's KeepAlive,
// which counts a TTL from the arrival of an answer, and stays with one server even
// where that one is frozen, nor its KeepAliveOnce, which tries again and again without
// a pause where something in between answers that no server can be reached.
func (c *claim) renew() {
	interval := c.ttl / 3
	next := time.NewTimer(interval)
	defer next.Stop()
	for {
		select {
		case <-c.Done():
			return
		case <-next.C:
		}
		if c.Err() != nil { // looks at the clock, also where no renewal is answered
			return
		}
		begin := lease.Now()
		switch err := c.renewOnce(interval); {
		case err == nil:
			next.Reset(max(interval-time.Duration(lease.Now()-begin), 0))
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			c.Lose(errEnded)
			return
		default:
			next.Reset(retryPause)
		}
	}
}

// renewOnce renews the lease within limit. Each request goes to the next server in
// turn, and one that is not answered is followed by another after half of limit, beside
// it: the turn may come to a frozen server twice, and a busy one may only be slow.
func (c *claim) renewOnce(limit time.Duration) error {
	const tries = 2
	ctx, cancel := context.WithTimeout(c.Proof, limit)
	defer cancel()
	answers := make(chan error, tries)
	another := time.NewTimer(0)
	defer another.Stop()
	var err error
	for sent, failed := 0, 0; failed < tries; {
		select {
		case <-another.C:
			if sent++; sent < tries {
				another.Reset(limit / tries)
			}
			go func() {
				at := lease.Now()
				err := c.engine.keepAlive(ctx, c.id)
				if err == nil {
					c.Extend(at)
				}
				answers <- err
			}()
		case err = <-answers:
			if err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return err
			}
			if failed++; sent < tries {
				another.Reset(retryPause)
			}
		}
	}
	return err
}

// keepAlive asks one server once to renew a lease.
func (e *engine) keepAlive(ctx context.Context, id clientv3.LeaseID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := pb.NewLeaseClient(e.client.ActiveConnection()).LeaseKeepAlive(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil && err != io.EOF {
		return err
	}
	resp, err := stream.Recv() // which knows better after an io.EOF
	if err == nil && resp.TTL <= 0 {
		err = rpctypes.ErrLeaseNotFound
	}
	return err
}

// revoke ends a lease. Asked again after an answer that was lost, etcd does not know
// the lease any more.
func (e *engine) revoke(ctx context.Context, id clientv3.LeaseID) error {
	return e.insist(ctx, func(ctx context.Context) error {
		_, err := e.client.Revoke(ctx, id)
		return err
	})
}

// dispose revokes a lease without the caller, whatever the server says. A lease that
// cannot be revoked in its TTL, as granted, has ended.
func (e *engine) dispose(ctx context.Context, id clientv3.LeaseID, ttl time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ttl)
	defer cancel()
	for {
		err := e.revoke(ctx, id)
		if err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound) || e.client.Ctx().Err() != nil || !pause(ctx) {
			return
		}
	}
}

// abandon gives up a claim in the background. The key goes with the lease: a
// transaction that is still on its way finds no lease to put it under.
func (c *claim) abandon() {
	c.Release()
	go c.engine.dispose(c.Proof, c.id, c.ttl)
}

// Context is the proof, which ends with the ownership.
func (c *claim) Context() context.Context { return c.Proof }

func (c *claim) Valid() (time.Time, bool)         { return c.Proof.Valid(), true }
func (c *claim) Token() (_ locker.Token, ok bool) { return c.token, true }

func (c *claim) Unlock(ctx context.Context) error {
	return c.freed.Once(ctx, func() error { return c.release(ctx) }, c.unsure)
}

func (c *claim) unsure(err error) error {
	return fmt.Errorf("etcd: unlock %q: %w: %w", c.call.Name, locker.ErrUnsure, err)
}

// release revokes the lease. Deleting the key by its name would not do: a request
// that is late, or repeated by a proxy, must not be able to meet another claim's key.
func (c *claim) release(ctx context.Context) error {
	if lost := c.Release(); lost != nil {
		c.abandon()
		return lost
	}
	wait, cancel := context.WithTimeout(ctx, c.engine.Traits().Cleanup)
	defer cancel()

	// The watch may be a moment late. Look, so that nil means held to the end.
	resp, err := c.engine.get(wait, c.key)
	if err == nil && (len(resp.Kvs) == 0 || resp.Kvs[0].CreateRevision != int64(c.token.N)) {
		c.abandon()
		return fmt.Errorf("%v: %w: %w", c.call, locker.ErrLost, errDeleted)
	}
	looked := err == nil
	if looked {
		err = c.engine.revoke(wait, c.id)
	}
	switch {
	case err == nil:
		return nil
	case looked && errors.Is(err, rpctypes.ErrLeaseNotFound):
		// It was held until Unlock was called, and after. The client has sent the
		// request twice, or the lease has ended since.
		return nil
	}
	c.abandon()
	return c.unsure(err)
}

func code(err error) codes.Code {
	var e interface{ Code() codes.Code }
	if errors.As(err, &e) {
		return e.Code()
	}
	return status.Code(err)
}

// whoami is the value of the keys, for whoever looks at them.
var whoami = sync.OnceValue(func() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("%s %d", host, os.Getpid())
})
