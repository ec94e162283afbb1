package flockctx

import (
	"sync"
	"sync/atomic"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/sys"
)

// A queue is what all handles of this process on one lock of one file have in
// common. It lives as long as one of them has the file open.
type queue struct {
	gate     gate.Gate
	key      queueKey
	shard    *shard
	next     *queue         // in shard; guarded by shard.mu, as all that follows
	refs     int            // handles
	holders  *Flock         // list of the handles that hold the lock. It keeps them reachable.
	patience int64          // how long this process may keep the lock to itself
	outsider *outsider      // the goroutine inside that waits for another process, if one does
	released *atomic.Uint64 // in releases
}

type queueKey struct {
	id            sys.FileID
	mechanism     Mechanism
	start, length int64
}

// overlaps reports whether the byte ranges of k and o overlap. A length of 0 reaches
// to the end of the file.
func (k queueKey) overlaps(o queueKey) bool {
	return (k.length == 0 || o.start < k.start+k.length) && (o.length == 0 || k.start < o.start+o.length)
}

// A shard holds the queues of some files, and the mutex of their gates.
type shard struct {
	mu     sync.Mutex
	queues *queue // list of those in use
	spare  *queue // one that is not in use, for the next file

	_ [40]byte // no two shards in a cache line
}

// So many shards make a list short with 10,000 files open, and untouched ones take
// no memory: faster than a map for the few files that most programs lock.
var shards [1024]shard

// releases make a release of a lock synchronized before the next grant, for the
// memory model: a release adds to one of them before it, a grant loads it after.
// The next grant can be on another file, where the path's was removed or replaced
// in between; that file was opened since, so the grant after an open loads them all.
// They are few for that, and several for files that have nothing to do with each
// other. It is not per queue, since byte ranges of different queues can overlap.
var releases [16]struct {
	n atomic.Uint64
	_ [56]byte
}

// publish notes a release that is about to happen.
func (q *queue) publish() { q.released.Add(1) }

// observe notes a grant that has happened, the first one after an open if opened is
// set.
func (q *queue) observe(opened bool) {
	if !opened {
		q.released.Load()
		return
	}
	for i := range releases {
		releases[i].n.Load()
	}
}

func hash(id sys.FileID) uint64 { return (id.Dev ^ id.Ino) * 0x9E3779B97F4A7C15 }

func shardOf(id sys.FileID) *shard { return &shards[hash(id)>>54] }

// join returns the queue of k, with one more handle, and its shard's mutex held.
func join(k queueKey) *queue {
	s := shardOf(k.id)
	s.mu.Lock()
	q := s.queues
	for q != nil && q.key != k {
		q = q.next
	}
	if q == nil {
		if q = s.spare; q != nil {
			s.spare = nil
			q.patience = 0
		} else {
			q = &queue{shard: s, released: &releases[hash(k.id)>>60].n}
		}
		q.gate.Init(&s.mu, hash(k.id)>>60)
		q.key = k
		q.next = s.queues
		s.queues = q
	}
	q.refs++
	return q
}

func (q *queue) lock()   { q.shard.mu.Lock() }
func (q *queue) unlock() { q.shard.mu.Unlock() }

// unref takes a handle off q. The mutex is held.
func (q *queue) unref() {
	if q.refs--; q.refs > 0 {
		return
	}
	s := q.shard
	p := &s.queues
	for *p != q {
		p = &(*p).next
	}
	*p = q.next
	q.next = nil
	s.spare = q
}

// addHolder notes that l holds the lock, or is inside to ask for it. The mutex is held.
func (q *queue) addHolder(l *Flock) {
	l.nextHolder = q.holders
	if q.holders != nil {
		q.holders.prevHolder = l
	}
	q.holders = l
}

func (q *queue) removeHolder(l *Flock) {
	if l.prevHolder == nil {
		q.holders = l.nextHolder
	} else {
		l.prevHolder.nextHolder = l.nextHolder
	}
	if l.nextHolder != nil {
		l.nextHolder.prevHolder = l.prevHolder
	}
	l.nextHolder, l.prevHolder = nil, nil
}
