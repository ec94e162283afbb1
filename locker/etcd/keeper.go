package etcd

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/locker"
)

// A keeper renews the leases of all claims of one client, over one stream: with users and
// passwords every stream costs the server a bcrypt. It is neither the client's KeepAlive,
// which counts a TTL from the arrival of an answer and stays with one server even where
// that one is frozen, nor its KeepAliveOnce, which opens a stream for each renewal.
//
//   - A lease is due an interval, less some jitter, after its last confirmed renewal was
//     sent: a tenth of the TTL, so that it outlasts a server that stops for nine; but not
//     less than a second, nor more than a third. Those that are due soon go along.
//   - The server answers a stream's requests one by one, each once; so an answer belongs
//     to the one request for its lease that is unanswered there, and proves the lease from
//     when that was sent.
//   - A stream that owes answers and gives none for a sixth of a TTL is silent: a second
//     one is opened beside it, to another server, and asked for all that is due. After
//     twice that time without an answer there is a third; then the oldest is replaced.
//     Whichever answers first stays, the others are closed.
//   - A stream that fails is followed by another, after a pause that doubles until
//     something is answered.
//
// One goroutine decides; each stream has one that sends, which may block, and one that
// receives. They end when no claim is left: at once if there is no stream, else idleStream
// later, or with the client.
//
// It also asks for signs of life of the watches, see follow.
type keeper struct {
	client *clientv3.Client
	wake   chan struct{} // holds one: decide again

	mu       sync.Mutex // guards the fields below, claim.due and those of the streams
	claims   map[clientv3.LeaseID]*claim
	streams  []*stream     // the last one is asked
	decision lease.Instant // when the next one is due
	retryAt  lease.Instant // no stream is opened before
	pause    time.Duration // after the next failure
	emptyAt  lease.Instant // since when there are no claims

	watches
}

const (
	// idleStream is how long a stream stays open for the next claim.
	idleStream = 5 * time.Second

	// maxStreams is how many are open at a time, at most.
	maxStreams = 3

	maxRetryPause = 500 * time.Millisecond
)

// keepers has the keeper of each client that has claims.
var keepers = struct {
	sync.Mutex // taken before that of a keeper
	of         map[*clientv3.Client]*keeper
}{of: map[*clientv3.Client]*keeper{}}

// keep renews the lease of c until it is dropped or lost, and returns who does it.
func keep(c *claim, sent lease.Instant) *keeper {
	keepers.Lock()
	defer keepers.Unlock()
	client := c.engine.client
	k := keepers.of[client]
	if k == nil {
		k = &keeper{client: client, wake: make(chan struct{}, 1), claims: map[clientv3.LeaseID]*claim{}, pause: retryPause}
		keepers.of[client] = k
		go k.run()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c.due = c.dueAfter(sent)
	k.claims[c.id] = c
	k.hasteLocked(c.due)
	return k
}

// drop forgets a claim.
func (k *keeper) drop(c *claim) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.claims, c.id)
	if len(k.claims) == 0 {
		k.hasteLocked(0)
	}
}

// hurry has the lease of c renewed now.
func (k *keeper) hurry(c *claim) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c.due = lease.Now()
	k.hasteLocked(c.due)
}

// hasteLocked sees to it that the next decision is made by the given instant.
func (k *keeper) hasteLocked(by lease.Instant) {
	if by < k.decision {
		k.decision = by
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

func (k *keeper) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-k.wake:
		case <-timer.C:
		}
		next, goOn := k.decide(lease.Now())
		if !goOn && k.end() {
			return
		}
		timer.Reset(time.Duration(next - lease.Now()))
	}
}

// end ends the keeper, unless a claim has come meanwhile.
func (k *keeper) end() bool {
	keepers.Lock()
	defer keepers.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.claims) > 0 {
		return false
	}
	k.endWatchesLocked()
	for _, s := range k.streams {
		s.cancel()
	}
	delete(keepers.of, k.client)
	return true
}

// decide sends what is due, and returns when it is to be called again, or false if the
// keeper is not needed any more.
func (k *keeper) decide(now lease.Instant) (next lease.Instant, goOn bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var due []*claim
	shortest := idleStream // a third of the shortest TTL
	patience := idleStream // with a stream
	next = now + lease.Instant(idleStream)
	for id, c := range k.claims {
		switch {
		case c.Err() != nil && !errors.Is(context.Cause(c.Proof), locker.ErrReleased):
			// Err looks at the clock, also where no renewal is answered.
			delete(k.claims, id)
			continue
		case c.due <= now+lease.Instant(c.interval()/10):
			due = append(due, c)
			patience = min(patience, c.ttl/6)
		default:
			next = min(next, c.due)
		}
		shortest = min(shortest, c.ttl/3)
	}
	if len(k.claims) == 0 {
		if k.emptyAt == 0 {
			k.emptyAt = now
		}
		next = k.emptyAt
		if len(k.streams) > 0 {
			next += lease.Instant(idleStream)
		}
		k.decision = next
		return next, now < next
	}
	k.emptyAt = 0
	next = min(next, k.probeLocked(now, shortest))
	if len(due) > 0 {
		next = min(next, k.askLocked(now, due, patience))
	}
	k.decision = next
	return next, true
}

// askLocked asks for the renewal of those that are due, where that is not under way. It
// returns when to look again.
func (k *keeper) askLocked(now lease.Instant, due []*claim, patience time.Duration) lease.Instant {
	n := len(k.streams)
	patience *= time.Duration(max(n, 1)) // or those that open slowly would never answer
	if n == 0 || k.streams[n-1].silent(now, patience) {
		if now < k.retryAt {
			return k.retryAt
		}
		if n == maxStreams {
			k.streams[0].cancel()
			k.streams = k.streams[1:]
		}
		k.streams = append(k.streams, k.openLocked())
	}
	s := k.streams[len(k.streams)-1]
	for _, c := range due {
		s.askLocked(c.id, now)
	}
	return max(s.owesSince+lease.Instant(patience), now+lease.Instant(retryPause))
}

// A stream carries requests to one server, and its answers. Its fields belong to the
// keeper's mutex.
type stream struct {
	cancel    context.CancelFunc
	ready     chan struct{} // holds one: there is something to send
	server    string        // once it is open
	queue     []clientv3.LeaseID
	asked     map[clientv3.LeaseID]lease.Instant // unanswered: when sent, 0 if not yet
	owesSince lease.Instant                      // asked is not empty, and nothing came
}

func (s *stream) silent(now lease.Instant, patience time.Duration) bool {
	return len(s.asked) > 0 && now >= s.owesSince+lease.Instant(patience)
}

func (s *stream) askLocked(id clientv3.LeaseID, now lease.Instant) {
	if _, ok := s.asked[id]; ok {
		return
	}
	if len(s.asked) == 0 {
		s.owesSince = now
	}
	s.asked[id] = 0
	s.queue = append(s.queue, id)
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

func (k *keeper) openLocked() *stream {
	ctx, cancel := context.WithCancel(k.client.Ctx())
	s := &stream{cancel: cancel, ready: make(chan struct{}, 1), asked: map[clientv3.LeaseID]lease.Instant{}}
	go k.send(ctx, s)
	return s
}

// send opens the stream and sends its requests.
func (k *keeper) send(ctx context.Context, s *stream) {
	conn, err := k.open(ctx, s)
	if err != nil {
		k.failed(s, err)
		return
	}
	go func() {
		for {
			resp, err := conn.Recv() // which knows better than Send why
			if err != nil {
				k.failed(s, err)
				return
			}
			k.answered(s, clientv3.LeaseID(resp.ID), resp.TTL)
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.ready:
		}
		k.mu.Lock()
		batch := s.queue
		s.queue = nil
		k.mu.Unlock()
		for _, id := range batch {
			k.mu.Lock()
			s.asked[id] = lease.Now()
			k.mu.Unlock()
			if conn.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}) != nil {
				return
			}
		}
	}
}

// open opens the stream to a server that is not silent on another one. The client takes
// its servers in turn, and other requests may have had theirs in between.
func (k *keeper) open(ctx context.Context, s *stream) (conn pb.Lease_LeaseKeepAliveClient, err error) {
	for tries := len(k.client.Endpoints()); ; tries-- {
		try, cancel := context.WithCancel(ctx)
		conn, err = pb.NewLeaseClient(k.client.ActiveConnection()).LeaseKeepAlive(try, grpc.WaitForReady(true))
		if err != nil {
			cancel()
			return nil, err
		}
		server := ""
		if p, ok := peer.FromContext(conn.Context()); ok {
			server = p.Addr.String()
		}
		k.mu.Lock()
		silent := slices.ContainsFunc(k.streams, func(other *stream) bool { return other != s && other.server == server })
		if !silent || tries <= 1 {
			s.server = server
			k.mu.Unlock()
			context.AfterFunc(ctx, cancel)
			return conn, nil
		}
		k.mu.Unlock()
		cancel()
	}
}

// answered notes the answer to a renewal.
func (k *keeper) answered(s *stream, id clientv3.LeaseID, ttl int64) {
	k.mu.Lock()
	sent := s.asked[id]
	delete(s.asked, id)
	s.owesSince = lease.Now()
	k.pause = retryPause
	for _, other := range k.streams {
		if other != s {
			other.cancel()
			k.streams = []*stream{s}
			k.hasteLocked(s.owesSince) // it is to be asked for what the other was
		}
	}
	c := k.claims[id]
	if c == nil || sent == 0 {
		k.mu.Unlock()
		return
	}
	if ttl <= 0 {
		delete(k.claims, id)
		k.mu.Unlock()
		c.Lose(errEnded)
		return
	}
	c.due = c.dueAfter(sent)
	k.hasteLocked(c.due)
	k.mu.Unlock()
	c.Extend(sent)
	select {
	case c.confirmed <- struct{}{}:
	default:
	}
}

// failed takes out a stream that has ended.
func (k *keeper) failed(s *stream, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s.cancel()
	for i, other := range k.streams {
		if other != s {
			continue
		}
		k.streams = append(k.streams[:i:i], k.streams[i+1:]...)
		now := lease.Now()
		k.retryAt = now + lease.Instant(k.pause/2+rand.N(k.pause/2))
		k.pause = min(2*k.pause, maxRetryPause)
		if c := k.refusedLocked(s, err); c != nil {
			c.due = now + lease.Instant(c.ttl/6)
		}
		k.hasteLocked(now)
	}
}

// refusedLocked returns the claim whose lease the server will not renew, or nil. Such an
// answer ends the stream, so that one is to let the others go first from now on.
func (k *keeper) refusedLocked(s *stream, err error) (first *claim) {
	switch code(err) {
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded, codes.Unauthenticated:
		return nil
	}
	var at lease.Instant
	for id, sent := range s.asked {
		if c := k.claims[id]; c != nil && sent != 0 && (first == nil || sent < at) {
			first, at = c, sent
		}
	}
	return first
}

// interval is the longest time from one renewal to the next.
func (c *claim) interval() time.Duration { return min(c.ttl/3, max(c.ttl/10, time.Second)) }

// dueAfter returns when a lease is due whose renewal was sent at the given instant.
func (c *claim) dueAfter(sent lease.Instant) lease.Instant {
	i := c.interval()
	return sent + lease.Instant(i-rand.N(i/5))
}
