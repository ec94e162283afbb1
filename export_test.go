package flockctx

import "context"

// Waiters returns how many goroutines of this process are parked for the lock of
// path, behind a goroutine of this process.
func Waiters(path string, m Mechanism) int {
	id, err := sysIdentify(0, path)
	if err != nil {
		return 0
	}
	s := shardOf(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for q := s.queues; q != nil; q = q.next {
		if q.key.id != id || q.key.mechanism != m {
			continue
		}
		for w := q.head; w != nil; w = w.next {
			n++
		}
		if q.upgrade != nil {
			n++
		}
	}
	return n
}

// HandleWaiters returns how many goroutines wait for the handle l itself.
func HandleWaiters(l *Flock) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	if l.turn == nil {
		return 0
	}
	for w := l.turn.head; w != nil; w = w.next {
		n++
	}
	return n
}

// Pollers returns how many goroutines poll.
func Pollers() int { return int(pollers.Load()) }

// Queues returns how many locks of files this process has open.
func Queues() int {
	n := 0
	for i := range shards {
		shards[i].mu.Lock()
		for q := shards[i].queues; q != nil; q = q.next {
			n++
		}
		shards[i].mu.Unlock()
	}
	return n
}

// CloseHolders closes every handle that holds a lock.
func CloseHolders() {
	var all []*Flock
	for i := range shards {
		shards[i].mu.Lock()
		for q := shards[i].queues; q != nil; q = q.next {
			for l := q.holders; l != nil; l = l.nextHolder {
				all = append(all, l)
			}
		}
		shards[i].mu.Unlock()
	}
	for _, l := range all {
		l.Close()
	}
}

// WaitingOutside returns how many goroutines wait for another process, in the
// kernel or by polling.
func WaitingOutside() int { return Pollers() + Blocked() }

// PretendOpening makes it look as if as many files were being opened as may be at
// once, until the func that it returns is called.
func PretendOpening() (done func()) {
	opening.Add(maxOpening)
	return func() { opening.Add(-maxOpening) }
}

// Key returns what tells the locks of files apart.
func Key(dev, ino uint64) any { return queueKey{id: fileID{dev: dev, ino: ino}} }

// NewBackoff returns a backoff like that of a Lock that polls.
func NewBackoff(b Backoff) exportedBackoff { return exportedBackoff{newBackoff(b)} }

type exportedBackoff struct{ b *backoff }

func (e exportedBackoff) Sleep(ctx context.Context, closed <-chan struct{}) error {
	return e.b.sleep(ctx, closed)
}
func (e exportedBackoff) Stop() { e.b.stop() }
