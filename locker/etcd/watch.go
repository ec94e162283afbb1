package etcd

import (
	"context"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"

	"github.com/flockctx/flockctx/internal/lease"
)

// watches are the watches of a keeper's client, all on one stream. The keeper's mutex
// guards them.
//
// A server that is frozen sends nothing, as one on which nothing happens does. So when
// renewals are due one more watch is made, whose creation the server answers. (It does not
// always answer a request for progress: not while a watch begins at a revision to come.)
// Without an answer within a TTL all watches end, and the next ones are labelled as another
// generation, which has the client make another stream, as a rule to the next server.
type watches struct {
	following  int             // calls of follow
	all        context.Context // ends the watches; nil if there were none
	endAll     context.CancelFunc
	generation int
	probing    bool
	probeAt    lease.Instant
}

// watchesLocked returns the context for a watch. It has none of a caller's values: those that
// are sent along would give a watch a stream of its own. Without a leader a server would wait
// for one in silence.
func (k *keeper) watchesLocked() context.Context {
	if k.all == nil {
		ctx := clientv3.WithRequireLeader(k.client.Ctx())
		ctx = metadata.AppendToOutgoingContext(ctx, "flockctx-watch", strconv.Itoa(k.generation))
		k.all, k.endAll = context.WithCancel(ctx)
	}
	return k.all
}

func (k *keeper) endWatchesLocked() {
	if k.all != nil {
		k.endAll()
		k.all = nil
		k.generation++
	}
}

// probeLocked probes, if it is time, and returns when it is next.
func (k *keeper) probeLocked(now lease.Instant, interval time.Duration) lease.Instant {
	if now >= k.probeAt {
		k.probeAt = now + lease.Instant(interval)
		if k.following > 0 && !k.probing {
			k.probing = true
			go k.probe(k.watchesLocked(), 3*interval)
		}
	}
	return k.probeAt
}

func (k *keeper) probe(all context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(all, limit)
	defer cancel()
	_, answered := <-k.client.Watch(ctx, "flockctx", clientv3.WithCreatedNotify(), clientv3.WithFilterPut(), clientv3.WithFilterDelete())
	k.mu.Lock()
	defer k.mu.Unlock()
	k.probing = false
	// Without a connection the client itself makes the stream anew.
	if !answered && k.all == all && k.client.ActiveConnection().GetState() == connectivity.Ready {
		k.endWatchesLocked()
	}
}

// follow reports whether key was deleted at revision rev or later. It returns false when
// ctx ends, or the watch does: then look at the key, and follow it from there.
func (c *claim) follow(ctx context.Context, key string, rev int64) (gone bool) {
	k := c.keeper
	k.mu.Lock()
	k.following++
	watch, cancel := context.WithCancel(k.watchesLocked())
	k.mu.Unlock()
	opened := make(chan clientv3.WatchChan, 1)
	go func() { opened <- k.client.Watch(watch, key, clientv3.WithRev(rev), clientv3.WithFilterPut()) }()
	var events clientv3.WatchChan
	defer func() {
		if events != nil {
			cancel()
		} else {
			// A watch that is canceled before the client has taken it in leaves a stream
			// that nobody ends. A frozen server may keep it waiting until all watches end.
			go func() { <-opened; cancel() }()
		}
		k.mu.Lock()
		k.following--
		k.mu.Unlock()
	}()
	for {
		select {
		case events = <-opened:
		case resp, ok := <-events:
			if !ok {
				if watch.Err() == nil {
					pause(ctx, retryPause) // it broke off
				}
				return false
			}
			for _, ev := range resp.Events {
				if ev.Type == clientv3.EventTypeDelete {
					return true
				}
			}
		case <-watch.Done():
			return false
		case <-ctx.Done():
			return false
		}
	}
}
