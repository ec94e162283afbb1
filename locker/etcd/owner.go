package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/locker"
)

// Owner returns a comparison that is true as long as h is held on the server: the guard
// for a transaction of the caller's own, which then needs no fencing token. ok is false
// where h is not a lock of this package.
//
//	guard, _ := etcd.Owner(h)
//	resp, err := client.Txn(ctx).If(guard).Then(clientv3.OpPut("config", "new")).Commit()
//	// resp.Succeeded is false: the lock was lost, and nothing was done.
func Owner(h locker.Held) (guard clientv3.Cmp, ok bool) {
	c, ok := h.(*claim)
	if !ok {
		return guard, false
	}
	return c.mine(), true
}

// An owner is the value of a claim's key, for whoever looks at it.
type owner struct {
	Host  string    `json:"host"`
	PID   int       `json:"pid"`
	Since time.Time `json:"since"` // of the wait or, some time after it, of the grant
	Note  string    `json:"note,omitempty"`
}

// newOwner returns the value for a Lock with ctx.
func newOwner(ctx context.Context) string {
	host, _ := os.Hostname()
	b, _ := json.Marshal(owner{host, os.Getpid(), time.Now().Round(time.Millisecond), locker.Note(ctx)})
	return string(b)
}

// noteGrant notes the time of the grant, where it is not that of the put.
func (c *claim) noteGrant() {
	value := newOwner(c.Proof)
	if pause(c.Proof, noteAfter) {
		c.engine.txn(c.Proof, []clientv3.Cmp{c.mine()}, []clientv3.Op{clientv3.OpPut(c.key, value, clientv3.WithLease(c.id))}, nil)
	}
}

// Holders implements [locker.Inspector]. A key that is not this package's, such as that of
// a concurrency.Mutex, is a Holder without a host. For a holder that had to wait, Since is
// when it began to wait, until it has held the lock for about a second.
func (e *engine) Holders(ctx context.Context, name string) ([]locker.Holder, error) {
	err := locker.CheckName(name)
	if err == nil {
		err = e.invalid
	}
	var resp *clientv3.GetResponse
	if err == nil {
		ctx, cancel := lease.Reach(ctx)
		defer cancel()
		resp, err = e.get(ctx, e.queue(name), clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
		if err != nil {
			err = e.explain(err)
		}
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	if err != nil {
		return nil, fmt.Errorf("etcd: holders of %.64q: %w", name, err)
	}
	var all []locker.Holder
	for i, kv := range resp.Kvs {
		var o owner
		json.Unmarshal(kv.Value, &o)
		h := locker.Holder{Mode: locker.Exclusive, Waiting: i > 0, Since: o.Since, Host: o.Host, PID: o.PID, Note: o.Note}
		if i == 0 {
			h.Token = locker.Token{Epoch: strconv.FormatUint(resp.Header.ClusterId, 16), N: uint64(kv.CreateRevision)}
		}
		all = append(all, h)
	}
	return all, nil
}

// queue returns the prefix of the keys of all claims to name. An escaped name has no
// slash, so no name's keys lie under another's.
func (e *engine) queue(name string) string { return e.prefix + url.PathEscape(name) + "/" }
