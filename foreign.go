package flockctx

import (
	"errors"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/interrupt"
	"github.com/flockctx/flockctx/internal/quiet"
	"github.com/flockctx/flockctx/internal/sys"
)

// An outsider is the goroutine inside a gate that waits for another process, for itself
// and for those that wait behind it: in the way that is right for the strictest of them.
type outsider struct {
	local bool // the file is on a file system that answers an interrupt at once

	// Guarded by the mutex of the queue.
	hurry  chan struct{}   // made where it polls; capacity 1; a token says: somebody came that cannot wait so long
	blocks bool            // it waits in the kernel, or is about to
	leave  bool            // it is to leave the kernel
	out    bool            // it is to leave the gate, for a reader inside that wants to be alone
	call   *interrupt.Call // the wait in the kernel
	next   int64           // nanotime of its next try, where it polls
}

// A need is how to wait for another process.
type need struct {
	block bool // in the kernel; else by polling
	poll  Backoff
}

// blocks reports whether s wants to wait in the kernel.
func (s *settings) blocks(local bool) bool {
	return s.Wait == WaitBlock || s.Wait == WaitAuto && local
}

// need returns what is right for a goroutine inside with settings s, and for all that
// wait behind it. On a local file system a wait in the kernel serves everybody: it ends
// with the lock's release and with the context. Elsewhere it may hang, so polling serves
// everybody, unless all of them have asked to block. The mutex is held.
func (q *queue) need(s *settings, local bool) need {
	n := need{s.blocks(local), s.Poll}
	q.gate.Waiting(func(_ gate.Mode, tag any) {
		l, ok := tag.(*Flock)
		if !ok {
			return
		}
		w := l.opts
		if local {
			n.block = n.block || w.blocks(local)
		} else {
			n.block = n.block && w.blocks(local)
		}
		n.poll.Min, n.poll.Max = min(n.poll.Min, w.Poll.Min), min(n.poll.Max, w.Poll.Max)
	})
	return n
}

// joinWaiters tells the outsider, if there is one, that somebody with settings s is
// about to wait behind it. The mutex is held.
func (q *queue) joinWaiters(s *settings) {
	o := q.outsider
	if o == nil {
		return
	}
	switch block := s.blocks(o.local); {
	case o.blocks && !block && !o.local, !o.blocks && (block && o.local || o.next-nanotime() > int64(s.Poll.Min)):
		o.stir()
	}
}

// stir has o look anew how to wait. The mutex is held.
func (o *outsider) stir() {
	switch {
	case !o.blocks:
		select {
		case o.hurry <- struct{}{}:
		default:
		}
	case !o.leave:
		o.leave = true
		if o.call != nil {
			go o.call.Fire() // which returns when o has left the kernel
		}
	}
}

// sendOut has the outsider, a reader, leave the gate for one inside that wants to be alone.
// With Fair it can wait in line behind another process that waits for that one. The mutex
// is held.
func (q *queue) sendOut() {
	if o := q.outsider; o != nil {
		o.out = true
		o.stir()
	}
}

// waitForeign waits for a lock that another process holds. It reports whether the
// goroutine is still inside the gate.
func (l *Flock) waitForeign(a *attempt, m Mode) (inside bool, err error) {
	q := l.q
	for {
		q.lock()
		if q.gate.Close() {
			q.unlock()
			if err := l.await(a, m, l.opts.Fair); err != errLeft {
				return true, err
			}
		} else {
			q.unlock()
		}
		// Readers of this process were let in together; one of them waits, or wants to be
		// alone.
		closed := l.closedFor(a)
		q.lock()
		q.removeHolder(l)
		q.joinWaiters(l.opts)
		if err := q.gate.Retreat(a.done, closed, gate.Mode(m), l); err != nil {
			return false, err
		}
		q.lock()
		q.addHolder(l)
		q.unlock()
		if err := l.take(m); err != errBusy {
			return true, err
		}
	}
}

// await waits for another process, in the kernel or by polling, with the gate closed,
// which it opens in the end; with fair set in line with other processes.
func (l *Flock) await(a *attempt, m Mode, fair bool) (err error) {
	q := l.q
	o := &outsider{local: l.desc.IsLocal()}
	closed := l.closedFor(a)
	q.lock()
	q.outsider = o
	q.unlock()
	if r := l.request(sys.Try, m); fair {
		err = l.awaitFair(o, a, closed, r)
	} else {
		err = l.awaitAs(o, a, closed, r)
	}
	q.lock()
	q.outsider = nil
	q.gate.Open()
	q.unlock()
	if err != nil && err != fs.ErrClosed && a.isDone() {
		err = errEnded // whatever the system says of a wait that was to end
	}
	return err
}

// awaitAs waits for the lock of r as the outsider o. The error is errLeft where o is to
// leave the gate.
func (l *Flock) awaitAs(o *outsider, a *attempt, closed <-chan struct{}, r sys.Request) error {
	q := l.q
	possible := true
	var b *backoff
	for {
		q.lock()
		if o.out {
			q.unlock()
			return errLeft
		}
		n := q.need(l.opts, o.local)
		o.blocks = n.block && possible && reserveBlocked()
		o.leave = false
		if !o.blocks && o.hurry == nil {
			o.hurry = make(chan struct{}, 1)
		}
		q.unlock()
		if o.blocks {
			err := l.block(o, a, r)
			blocked.Add(-1)
			switch err {
			case interrupt.ErrImpossible:
				possible = false
			case errLeft:
			default:
				return err
			}
			continue
		}
		if b == nil {
			b = newBackoff(n.poll)
		} else {
			b.start()
		}
		b.hasten(n.poll)
		err := b.sleep(a, closed, func(next int64) <-chan struct{} {
			q.lock()
			o.next = next
			q.unlock()
			return o.hurry
		})
		b.stop()
		if err == errHurried {
			continue
		}
		if err != nil {
			return err
		}
		if err := l.desc.Lock(r); err != errBusy {
			return err
		}
	}
}

// errLeft: the wait was given up for somebody else: in the kernel, for one behind who wants
// to poll, or as such, for one inside who wants to be alone.
var errLeft = errors.New("left")

// block waits in the kernel for the lock of r. It returns nil, errEnded,
// fs.ErrClosed, errLeft, interrupt.ErrImpossible, or the system's error. Nil may come
// together with the end of the context or a Close, which the caller looks for.
func (l *Flock) block(o *outsider, a *attempt, r sys.Request) error {
	call, free, err := l.desc.NewCall()
	if err != nil {
		return err
	}
	defer free()
	if err := l.beginWait(a, call); err != nil {
		return err
	}
	l.q.lock()
	leave := o.leave
	o.call = call
	l.q.unlock()
	err = errLeft
	if !leave {
		stop := quiet.OnEnd(a.ctx, a.done, call.Fire)
		err = l.desc.Wait(call, r)
		// No goroutine is left behind. To wait for one that is locked to its thread
		// takes two switches of threads: so this one is not any more.
		stop()
	}
	l.q.lock()
	o.call = nil
	l.q.unlock()
	switch closing := l.endWait(a); {
	case err != interrupt.ErrInterrupted:
		return err
	case closing:
		return fs.ErrClosed
	case a.isDone():
		return errEnded
	}
	return errLeft
}

// blocked counts the goroutines that wait in the kernel, each of which takes a thread,
// and the runtime keeps it: some 30 KiB. A Go program dies at 10,000 threads, and
// earlier where it may not have so many: so they are a few, see sys.MaxThreads.
var blocked atomic.Int32

var maxBlocked = sync.OnceValue(func() int32 { return int32(min(64, sys.MaxThreads()/4)) })

// reserveBlocked counts one more, unless there are enough.
func reserveBlocked() bool {
	if blocked.Add(1) <= maxBlocked() {
		return true
	}
	blocked.Add(-1)
	return false
}
