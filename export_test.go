package flockctx

import (
	"context"
	"time"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/sys"
)

// Waiters returns how many goroutines of this process are parked for the lock of
// path, behind a goroutine of this process.
func Waiters(path string, m Mechanism) (n int) {
	id, err := sys.Identify(path)
	if err != nil {
		return 0
	}
	eachQueue(func(q *queue) {
		if q.key.id.Dev == id.Dev && q.key.id.Ino == id.Ino && q.key.mechanism == m {
			q.gate.Waiting(func(gate.Mode, any) { n++ })
		}
	})
	return n
}

// HandleWaiters returns how many goroutines wait for the handle l itself.
func HandleWaiters(l *Flock) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.others != nil {
		l.others.turn.Waiting(func(gate.Mode, any) { n++ })
	}
	return n
}

// Pollers returns how many goroutines poll.
func Pollers() int { return int(pollers.Load()) }

// Blocked returns how many goroutines wait in the kernel, or are about to.
func Blocked() int { return int(blocked.Load()) }

// MaxBlocked returns how many may.
func MaxBlocked() int { return int(maxBlocked()) }

// WaitingOutside returns how many goroutines wait for another process, in the
// kernel or by polling.
func WaitingOutside() int { return Pollers() + Blocked() }

// IsLocal reports whether the file that l has open is on a local file system.
func IsLocal(l *Flock) bool { return l.desc.IsLocal() }

func eachQueue(fn func(*queue)) {
	for i := range shards {
		shards[i].mu.Lock()
		for q := shards[i].queues; q != nil; q = q.next {
			fn(q)
		}
		shards[i].mu.Unlock()
	}
}

// Queues returns how many locks of files this process has open.
func Queues() (n int) {
	eachQueue(func(*queue) { n++ })
	return n
}

// CloseHolders closes every handle that holds a lock.
func CloseHolders() {
	var all []*Flock
	eachQueue(func(q *queue) {
		for l := q.holders; l != nil; l = l.nextHolder {
			all = append(all, l)
		}
	})
	for _, l := range all {
		l.Close()
	}
}

// PretendOpening makes it look as if as many files were being opened as may be at
// once, until the func that it returns is called; with stuck, as if a thread could not be
// spared for another one.
func PretendOpening(isStuck bool) (done func()) {
	b, n := opening.Load(), int32(maxOpening)
	if isStuck {
		n = maxStuck() + 1
	}
	b.n.Add(n)
	tries.n.Add(n)
	return func() { b.n.Add(-n); tries.n.Add(-n) }
}

// OpenPatience is how long others wait for those.
const OpenPatience = openPatience

// Key returns what tells the locks of files apart.
func Key(dev, ino uint64) any { return queueKey{id: sys.FileID{Dev: dev, Ino: ino}} }

// ExportedBackoff is a backoff like that of a Lock that polls.
type ExportedBackoff struct{ b *backoff }

func NewBackoff(b Backoff) ExportedBackoff { return ExportedBackoff{newBackoff(b)} }

func (e ExportedBackoff) Sleep(ctx context.Context, closed <-chan struct{}) error {
	a := newAttempt(ctx)
	a.waits()
	return e.b.sleep(&a, closed, nil)
}
func (e ExportedBackoff) Stop() { e.b.stop() }

// GiveWayAfter is how soon a process whose goroutines keep the lock leaves it alone.
const GiveWayAfter time.Duration = minPatience
