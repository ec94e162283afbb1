package flockctx

import (
	"cmp"
	"slices"

	"github.com/flockctx/flockctx/internal/gate"
)

// HandleInfo is a handle of this process that holds a lock, or on which goroutines wait.
type HandleInfo struct {
	Path          string
	Mode          Mode
	Mechanism     Mechanism
	Start, Length int64 // of an OFD lock; a Length of 0 reaches to the end of the file
	Locked        bool  // the handle holds its lock

	// Waiting is how many goroutines wait for the lock: for another handle or process, or
	// for their turn of this handle.
	Waiting int

	// Device and Inode are the file's, on Linux as stat(2) gives them, which are mostly
	// those of a Holder: see there. They are zero where the system has no such numbers.
	Device, Inode uint64
}

// Snapshot returns the handles of this process that hold a lock or wait for one, sorted
// by path; of each path those that hold it come first, and the others in the order in
// which they wait. It asks the system nothing. Each handle is as it was at some moment of
// the call.
func Snapshot() []HandleInfo {
	var infos []HandleInfo
	for i := range shards {
		s := &shards[i]
		s.mu.Lock()
		for q := s.queues; q != nil; q = q.next {
			infos = q.infos(infos)
		}
		s.mu.Unlock()
	}
	slices.SortStableFunc(infos, func(a, b HandleInfo) int {
		if c := cmp.Compare(a.Path, b.Path); c != 0 || a.Locked == b.Locked {
			return c
		}
		if a.Locked {
			return -1
		}
		return 1
	})
	return infos
}

// infos appends the handles of the queue. The mutex is held.
func (q *queue) infos(infos []HandleInfo) []HandleInfo {
	var parked []HandleInfo
	_, asks := q.gate.Closed() // one of those inside waits for another process
	q.gate.Waiting(func(_ gate.Mode, tag any) {
		if l, ok := tag.(*Flock); ok {
			parked = append(parked, l.info(q, true))
		} else {
			asks = true // one of those inside waits for the others
		}
	})
	for l := q.holders; l != nil; l = l.nextHolder {
		if h := l.info(q, asks && l.isChanging()); h.Locked || h.Waiting > 0 {
			infos = append(infos, h)
		}
	}
	return append(infos, parked...)
}

// isChanging reports whether a goroutine is about to lock or convert l.
func (l *Flock) isChanging() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == locking || l.state == converting
}

// info says how it is with a handle of the queue q; waits, that one of its goroutines
// waits there. The mutex of the queue is held.
func (l *Flock) info(q *queue, waits bool) HandleInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := HandleInfo{
		Path: l.Name(), Mode: Mode(l.mode), Mechanism: l.opts.Mechanism, Start: l.opts.Start, Length: l.opts.Length,
		Device: q.key.id.Dev, Inode: q.key.id.Ino,
		Locked: l.state == locked || l.state == unlocking || l.state == converting,
	}
	if waits {
		h.Waiting++
	}
	if l.others != nil {
		l.others.turn.Waiting(func(gate.Mode, any) { h.Waiting++ })
	}
	return h
}
