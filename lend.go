package flockctx

// LockFile can be given the same open file twice. The kernel has one lock for it:
// exclusive handles take turns on it by the gate, but shared ones hold it together,
// and only the last of them may release it.

// A lentFile is an open file on which borrowed handles hold the lock shared.
type lentFile struct {
	fd   uintptr
	refs int
}

// lend takes the lock for one more shared handle.
func (l *Flock) lend(r request) error {
	q := l.q
	q.loan.Lock()
	defer q.loan.Unlock()
	return l.desc.control(func(fd uintptr) error {
		for i := range q.lent {
			if sameDescription(q.lent[i].fd, fd) {
				q.lent[i].refs++
				return nil
			}
		}
		if err := sysLock(fd, r); err != nil {
			return err
		}
		q.lent = append(q.lent, lentFile{fd, 1})
		return nil
	})
}

// takeBack releases the lock for one shared handle.
func (l *Flock) takeBack(r request) error {
	q := l.q
	q.loan.Lock()
	defer q.loan.Unlock()
	return l.desc.control(func(fd uintptr) error {
		for i := range q.lent {
			if e := &q.lent[i]; sameDescription(e.fd, fd) {
				if e.refs == 1 {
					if err := sysLock(fd, r); err != nil {
						return err
					}
					q.lent = append(q.lent[:i], q.lent[i+1:]...)
				} else {
					e.refs--
				}
				return nil
			}
		}
		return sysLock(fd, r)
	})
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
		l.desc.control(func(fd uintptr) error {
			l.q.lent = []lentFile{{fd, 1}}
			return nil
		})
		l.q.loan.Unlock()
	}
}
