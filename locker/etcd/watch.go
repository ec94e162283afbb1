package etcd

import (
	"context"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/flockctx/flockctx/internal/lease"
)

// watches are what a keeper knows of the watches of its client. Its mutex guards them.
//
// A server that is frozen sends nothing, as one on which nothing happens does. So when
// renewals are due the server is asked to answer all watches (a probe), and a watch that
// has heard nothing for a TTL ends. They share a stream, which would stay with a frozen
// server: the next ones are labelled with another generation, which has them take another.
//
// The client opens a stream for a probe, if there is none, and nobody would close that. So
// no watch ends while a probe is on its way.
type watches struct {
	open       int // calls of follow
	generation int
	probeAt    lease.Instant
	probing    bool
	ended      []context.CancelFunc // of those that ended meanwhile
}

// probeLocked probes, if it is time, and returns when it is next.
func (k *keeper) probeLocked(now lease.Instant, interval time.Duration) lease.Instant {
	if k.open > 0 && !k.probing && now >= k.probeAt {
		k.probing = true
		go k.probe(k.generation, interval)
	}
	if now >= k.probeAt {
		k.probeAt = now + lease.Instant(interval)
	}
	return k.probeAt
}

func (k *keeper) probe(generation int, limit time.Duration) {
	ctx, cancel := context.WithTimeout(k.watchContext(generation), limit)
	defer cancel()
	k.client.RequestProgress(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.probing = false
	for _, end := range k.ended {
		end()
	}
	k.ended = nil
}

// watchContext has none of a caller's values: those that are sent along would give a watch
// a stream of its own. Without a leader a server would wait for one in silence.
func (k *keeper) watchContext(generation int) context.Context {
	ctx := clientv3.WithRequireLeader(k.client.Ctx())
	return metadata.AppendToOutgoingContext(ctx, "flockctx-watch", strconv.Itoa(generation))
}

// follow reports whether key was deleted at revision rev or later. It returns false when
// ctx ends, or the watch does: then look at the key, and follow it from there.
func (c *claim) follow(ctx context.Context, key string, rev int64) (gone bool) {
	k := c.keeper
	k.mu.Lock()
	k.open++
	generation := k.generation
	k.mu.Unlock()

	watch, cancel := context.WithCancel(k.watchContext(generation))
	end := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.probing {
			k.ended = append(k.ended, cancel)
		} else {
			cancel()
		}
	}
	defer func() {
		end()
		k.mu.Lock()
		k.open--
		k.mu.Unlock()
	}()
	// A frozen server keeps Watch itself waiting too.
	defer context.AfterFunc(ctx, end)()
	silence := time.AfterFunc(c.ttl, func() {
		k.mu.Lock()
		if k.generation == generation {
			k.generation++
		}
		k.mu.Unlock()
		end()
	})
	defer silence.Stop()
	for resp := range k.client.Watch(watch, key, clientv3.WithRev(rev), clientv3.WithFilterPut()) {
		silence.Reset(c.ttl)
		for _, ev := range resp.Events {
			if ev.Type == clientv3.EventTypeDelete {
				return true
			}
		}
	}
	if watch.Err() == nil {
		pause(ctx, retryPause) // it broke off
	}
	return false
}
