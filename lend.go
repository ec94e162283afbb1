package flockctx

import (
	"io/fs"
	"slices"

	"github.com/flockctx/flockctx/internal/lockview"
)

// LockFile can be given the same open file twice. The kernel has one lock for it:
// exclusive handles take turns on it by the gate, but shared ones hold it together,
// and only the last of them may release it. A file that its owner closed meanwhile
// has lost the lock, and its number may be another file's: so it is not the number
// that is remembered but the handle, whose os.File knows.

// lend takes the lock for one more shared handle.
func (l *Flock) lend(r request) error {
	q := l.q
	q.loan.Lock()
	defer q.loan.Unlock()
	err := l.desc.control(func(fd uintptr) error {
		if l.shares(fd) {
			return nil
		}
		return sysLock(fd, r)
	})
	if err == nil {
		q.lent = append(q.lent, l)
	}
	return err
}

// noteLent notes that the handle, alone in this process, waited for the lock and has it.
func (l *Flock) noteLent() {
	l.q.loan.Lock()
	l.q.lent = append(l.q.lent, l)
	l.q.loan.Unlock()
}

// expectLoan notes that the handle is about to wait for the lock. Another handle on
// the same open file can take the lock, and give it back, after the kernel has
// granted it to this one and before noteLent: it must not release it for both.
func (l *Flock) expectLoan() {
	l.q.loan.Lock()
	l.q.expecting = l
	l.q.loan.Unlock()
}

// stopExpecting ends what expectLoan began, after the wait ended in err. Where it
// failed, the lock that another handle left to this one is released.
func (l *Flock) stopExpecting(err error) {
	q := l.q
	q.loan.Lock()
	defer q.loan.Unlock()
	q.expecting = nil
	left := q.leftBehind
	q.leftBehind = false
	if err == nil || !left {
		return
	}
	l.desc.control(func(fd uintptr) error {
		if l.shares(fd) {
			return nil
		}
		return sysLock(fd, l.request(opUnlock))
	})
}

// takeBack releases the lock for one shared handle.
func (l *Flock) takeBack(r request) error {
	q := l.q
	q.loan.Lock()
	defer q.loan.Unlock()
	err := l.desc.control(func(fd uintptr) error {
		if l.shares(fd) {
			return nil
		}
		if e := q.expecting; e != nil && e != l && e.isOn(fd) {
			q.leftBehind = true
			return nil
		}
		return sysLock(fd, r)
	})
	if err == nil || err == fs.ErrClosed {
		q.lent = slices.DeleteFunc(q.lent, func(o *Flock) bool { return o == l })
	}
	return err
}

// shares reports whether another handle holds the lock shared on fd's open file.
// q.loan is held.
func (l *Flock) shares(fd uintptr) bool {
	for _, other := range l.q.lent {
		if other != l && other.isOn(fd) {
			return true
		}
	}
	return false
}

// isOn reports whether the handle is on fd's open file.
func (l *Flock) isOn(fd uintptr) (same bool) {
	l.desc.control(func(own uintptr) error {
		same = lockview.SameDescription(own, fd)
		return nil
	})
	return same
}

// unlend and relend keep the books for the only handle inside, which converts.
func (l *Flock) unlend() {
	if l.borrowed {
		l.q.loan.Lock()
		l.q.lent = nil
		l.q.loan.Unlock()
	}
}

func (l *Flock) relend() {
	if l.borrowed {
		l.q.loan.Lock()
		l.q.lent = []*Flock{l}
		l.q.loan.Unlock()
	}
}

// errOverlap: the kernel would take the second lock for a change of the first.
var errOverlap = unsupported("another handle on the same open file has an overlapping byte range; open the file once more for this one")

// overlaps reports whether another handle inside on the same open file has another
// range that overlaps this one's. Of two that come at once, at least one sees it.
func (l *Flock) overlaps() bool {
	k, s := l.q.key, l.q.shard
	var others []descriptor
	s.mu.Lock()
	for q := s.queues; q != nil; q = q.next {
		if q == l.q || q.key.id != k.id || q.key.mechanism != OFD || !q.key.overlaps(k) {
			continue
		}
		for h := q.holders; h != nil; h = h.nextHolder {
			if h.borrowed {
				others = append(others, h.desc)
			}
		}
	}
	s.mu.Unlock()
	return slices.ContainsFunc(others, func(d descriptor) (same bool) {
		d.control(func(fd uintptr) error {
			same = l.isOn(fd)
			return nil
		})
		return same
	})
}

// overlaps reports whether the byte ranges of k and o overlap. A length of 0 reaches
// to the end of the file.
func (k queueKey) overlaps(o queueKey) bool {
	return (k.length == 0 || o.start < k.start+k.length) && (o.length == 0 || k.start < o.start+o.length)
}
