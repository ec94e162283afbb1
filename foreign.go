package flockctx

import (
	"errors"
	"sync/atomic"
	"time"
)

// waitForeign waits for a lock that another process holds. It reports whether the
// goroutine is still inside the gate.
func (l *Flock) waitForeign(a *attempt, m Mode) (inside bool, err error) {
	q := l.q
	for {
		q.mu.Lock()
		if !q.kernel {
			q.kernel = true
			q.mu.Unlock()
			break
		}
		// Readers of this process were let in together; one of them waits.
		q.removeHolder(l)
		if err := q.retreat(a.ctx, l.closedFor(a), m); err != nil {
			return false, err
		}
		q.mu.Lock()
		q.addHolder(l)
		q.mu.Unlock()
		if err := l.take(m); err != errBusy {
			return true, err
		}
	}
	shares := l.borrowed && m == Shared
	if shares {
		l.expectLoan()
	}
	err = l.await(a, m)
	if shares {
		l.stopExpecting(err)
	}
	q.mu.Lock()
	q.kernel = false
	if err == nil {
		q.dispatch(nanotime())
	}
	q.mu.Unlock()
	return true, err
}

// maxBlocked bounds the goroutines that wait in the kernel, each of which takes a
// thread, and the runtime keeps it: some 30 KiB. A Go program dies at 10,000 threads.
const maxBlocked = 64

var blocked atomic.Int32

// errMustPoll: it turned out that this wait cannot be in the kernel.
var errMustPoll = errors.New("must poll")

// await waits for another process, in the kernel or by polling.
func (l *Flock) await(a *attempt, m Mode) error {
	var block bool
	switch l.opts.Wait {
	case WaitAuto:
		q := l.q // the one who waits for its process, so alone with q.local
		if q.local == unknown {
			q.local = remote
			if l.desc.isLocal() {
				q.local = local
			}
		}
		block = q.local == local
	case WaitBlock:
		if !canBlock() {
			return unsupported("this system cannot interrupt a wait in the kernel")
		}
		block = true
	}
	var b *backoff
	for {
		if block && blocked.Add(1) <= maxBlocked {
			err := l.block(a, m)
			blocked.Add(-1)
			if err != errMustPoll {
				if err == nil && l.borrowed && m == Shared {
					l.noteLent()
				}
				return err
			}
		} else if block {
			blocked.Add(-1)
		}
		if b == nil {
			b = newBackoff(l.opts.Poll)
		} else {
			b.start()
		}
		err := b.sleep(a.ctx, l.closedFor(a))
		b.stop()
		if err != nil {
			return err
		}
		if err := l.take(m); err != errBusy {
			return err
		}
	}
}

// giveWay leaves the lock to other processes for a moment, if this one has kept it
// long enough, and reports whether it did.
func (l *Flock) giveWay(a *attempt) bool {
	q, now := l.q, nanotime()
	q.mu.Lock()
	patience := max(q.patience, int64(minPatience))
	q.mu.Unlock()
	a.gate.mu.Lock()
	due := now-a.gate.busySince >= patience
	if due {
		a.gate.busySince = now
	}
	a.gate.mu.Unlock()
	if !due {
		return false
	}
	timer := time.NewTimer(time.Duration(patience / giveWayShare))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-a.ctx.Done():
	case <-l.closedFor(a):
	}
	return true
}
