package flockctx

import (
	"sync"
	"sync/atomic"
)

// A queue is what all handles of this process on one lock of one file have in
// common. It lives as long as one of them has the file open.
type queue struct {
	gate
	key      queueKey
	shard    *shard
	next     *queue         // in shard; guarded by gate.mu
	refs     int            // handles; guarded by gate.mu
	holders  *Flock         // list of the handles that hold the lock; guarded by gate.mu. It keeps them reachable.
	patience int64          // how long this process may keep the lock to itself; guarded by gate.mu
	local    locality       // owned by the goroutine that has set gate.kernel
	released *atomic.Uint64 // in releases
	loan     sync.Mutex     // held over non-blocking system calls on borrowed descriptors, see Flock.lend
	lent     []*Flock       // borrowed handles that hold the lock shared; guarded by loan

	// expecting is the borrowed handle that waits for another process, to share the
	// lock with lent. leftBehind says that another one, on the same open file, left
	// the lock to it meanwhile. Both guarded by loan.
	expecting  *Flock
	leftBehind bool
}

// locality says whether a wait in the kernel for a lock can be interrupted at once.
type locality uint8

const (
	unknown locality = iota
	remote
	local
)

type queueKey struct {
	id            fileID
	mechanism     Mechanism
	start, length int64
}

// A fileID tells files apart: on unix by device and inode, on Windows by volume
// serial number and file index. An inode alone is not unique across mounts.
type fileID struct{ dev, ino uint64 }

// A shard holds the queues of some files, and the mutex of their gates.
type shard struct {
	mu     sync.Mutex
	queues *queue // list of those in use
	spare  *queue // one that is not in use, for the next file

	_ [40]byte // no two shards in a cache line
}

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

// leaving are the counts for gates where goroutines spin.
var leaving [16]departures

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

// So many shards make a list short with 10,000 files open, and untouched ones take
// no memory: faster than a map for the few files that most programs lock.
var shards [1024]shard

func (id fileID) hash() uint64 { return (id.dev ^ id.ino) * 0x9E3779B97F4A7C15 }

func shardOf(id fileID) *shard { return &shards[id.hash()>>54] }

// join returns the queue of k, with one more handle, and its gate's mutex held.
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
			q.sliceEnd, q.lastProbe, q.patience, q.local = 0, 0, 0, unknown
		} else {
			i := k.id.hash() >> 60
			q = &queue{shard: s, gate: gate{mu: &s.mu, departures: &leaving[i]}, released: &releases[i].n}
		}
		q.key = k
		q.next = s.queues
		s.queues = q
	}
	q.refs++
	return q
}

// quit takes a handle off q. The gate's mutex is held.
func (q *queue) quit() {
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
	q.watch = nil
	s.spare = q
}

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

// adjust sets when to give way next, after another process took the lock or did not.
func (q *queue) adjust(taken bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if taken {
		q.patience = int64(minPatience)
	} else {
		q.patience = min(2*max(q.patience, int64(minPatience)), int64(maxPatience))
	}
}
