package flockctx

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// An attempt is one call that wants a lock.
type attempt struct {
	ctx   context.Context
	try   bool  // fail rather than wait
	once  bool  // fail with errStale rather than start again
	start int64 // nanotime when it began to wait, 0 if it did not
	gate  *gate // the gate it waited at last, nil if it did not
}

// waits notes that a is about to wait.
func (a *attempt) waits() {
	if a.start == 0 {
		a.start = nanotime()
	}
}

// lockNew makes a handle and locks it.
func lockNew(path string, opts *Options, a *attempt) (*Flock, error) {
	l := New(path, opts)
	if a.ctx.Err() != nil {
		return nil, l.failure("lock", l.mode, a, errEnded)
	}
	if l.opts.invalid != nil {
		return nil, pathError("lock", path, l.opts.invalid)
	}
	// No other goroutine knows the handle: it is entered without l.mu.
	l.taken = true
	l.state = locking
	err := l.acquire(a, l.mode)
	if err == errStale {
		err = l.acquireCurrent(a, l.mode)
	}
	if err != nil {
		return nil, l.failure("lock", l.mode, a, err)
	}
	l.state = locked
	return l, nil
}

// lock is the way to a lock, from the handle to the verified grant.
func (l *Flock) lock(a *attempt) error {
	if a.ctx.Err() != nil {
		return l.failure("lock", l.Mode(), a, errEnded)
	}
	if l.opts.invalid != nil {
		return pathError("lock", l.path, l.opts.invalid)
	}
	l.mu.Lock()
	if !l.closing && !l.claim() {
		if a.try {
			l.mu.Unlock()
			return l.failure("lock", l.Mode(), a, errBusy)
		}
		a.waits()
		err := l.claimWait(a.ctx)
		a.gate = l.turn
		if err != nil {
			return l.failure("lock", l.Mode(), a, err)
		}
		l.mu.Lock()
	}
	if l.closing {
		l.mu.Unlock()
		return pathError("lock", l.path, fs.ErrClosed)
	}
	l.state = locking
	m := l.mode
	l.mu.Unlock()

	err := l.acquireCurrent(a, m)
	l.mu.Lock()
	if err == nil {
		l.setState(locked)
		l.mu.Unlock()
		return nil
	}
	l.setState(unlocked)
	handed := l.pass()
	l.mu.Unlock()
	yieldAfter(handed)
	return l.failure("lock", m, a, err)
}

// acquireCurrent acquires the lock of the file that the path names in the end.
//
// A busy path can be replaced a few times in a row. One that never names the file
// that opening it gives is on a file system without stable inode numbers, as some
// FUSE file systems are: that must not become a loop without an end, nor a hot one.
func (l *Flock) acquireCurrent(a *attempt, m Mode) error {
	var b *backoff
	for round := 1; ; round++ {
		err := l.acquire(a, m)
		if err != errStale || a.once {
			return err
		}
		switch {
		case a.ctx.Err() != nil:
			return errEnded
		case round == maxStale:
			return errUnstable
		case round < maxStale/10 || a.try:
			continue
		}
		if b == nil {
			b = newBackoff(l.opts.Poll)
		} else {
			b.start()
		}
		err = b.sleep(a.ctx, l.closedChan())
		b.stop()
		if err != nil {
			return err
		}
	}
}

const maxStale = 1000

var errUnstable = unsupported("each of %d times that the file was opened, the path named another one: the file system has no stable inode numbers, or somebody replaces the file all the time", maxStale)

// failure makes the error that the caller gets from the package's own.
func (l *Flock) failure(op string, m Mode, a *attempt, err error) error {
	var lost *lostError
	errors.As(err, &lost)
	if lost != nil {
		err = lost.err
	}
	var waited time.Duration
	if a.start != 0 {
		waited = time.Duration(max(nanotime()-a.start, 1))
	}
	switch err {
	case errStale: // to LockAll, which starts again
		return err
	case errEnded:
		err = contextError(a.ctx)
	case errBusy:
		err = ErrLocked
	default:
		if lost != nil {
			return pathError(op, l.path, lost)
		}
		if _, ok := err.(*fs.PathError); ok {
			return err
		}
		return pathError(op, l.path, err)
	}
	if lost != nil {
		err = &lostError{err}
	}
	return &BusyError{Path: l.path, Mode: m, Waited: waited, Err: err}
}

// acquire opens the file if it is not open, queues in this process, then at the
// kernel, and verifies the grant. On an error the handle is as before the call,
// except that after errStale its file is closed. The caller owns l.desc and l.q.
//
// Here and in close, the uncontended path has few functions between itself and its
// system calls. The kernel, guarding against speculation, makes the processor forget
// its return addresses, so after a system call each return costs a misprediction:
// with these calls flattened, Lock and Close took 5 % less.
func (l *Flock) acquire(a *attempt, m Mode) (err error) {
	opened := l.fresh
	l.fresh = false
	if l.desc.file == nil && l.q == nil {
		if opening.Add(1) > maxOpening && !a.try {
			if err := l.awaitOpening(a); err != nil {
				return err
			}
		}
		flag, perm := l.opts.openArgs()
		l.desc, err = openPath(l.path, flag, perm)
		opening.Add(-1)
		if err != nil {
			if err := l.openAfter(a, err); err != nil {
				return err
			}
		}
		opened = true
	}
	q := l.q
	if q == nil {
		q = join(queueKey{l.desc.id, l.opts.Mechanism, l.opts.Start, l.opts.Length})
		l.q = q
	} else {
		q.mu.Lock()
	}
	switch {
	case q.tryEnter(m), !a.try && q.spin(m):
		q.addHolder(l)
		q.mu.Unlock()
	case a.try:
		q.mu.Unlock()
		l.drop(opened)
		return errBusy
	default:
		a.waits()
		if err := q.enter(a.ctx, l.closedChan(), m); err != nil {
			l.drop(opened)
			return err
		}
		a.gate = &q.gate
		q.mu.Lock()
		q.addHolder(l)
		q.mu.Unlock()
	}

	gaveWay := a.gate != nil && m == Exclusive && l.giveWay(a)
	switch {
	case l.desc.file == nil:
		r := l.request(opTry)
		r.mode = m
		err = sysLock(l.desc.fd, r)
	case l.borrowed && l.opts.Mechanism == OFD && l.overlaps():
		err = errOverlap
	default:
		err = l.take(m)
	}
	inside := true
	if gaveWay {
		q.adjust(err == errBusy)
	}
	if err == errBusy && !a.try {
		a.waits()
		inside, err = l.waitForeign(a, m)
	}
	if err == nil {
		q.observe(opened || l.borrowed)
		id := l.desc.id
		if !l.borrowed {
			id, err = identifyPath(l.path)
		}
		if err = l.accept(a, opened, id, err); err == nil {
			return nil
		}
		if uerr := l.give(m); uerr != nil {
			// What cannot be unlocked goes with its descriptor.
			opened = true
		}
	}
	var handed bool
	if inside {
		q.mu.Lock()
		q.removeHolder(l)
		handed = q.leave(m)
		q.mu.Unlock()
	}
	if errors.Is(err, fs.ErrClosed) && !l.borrowed && !opened && !l.isClosing() {
		err = errStale // the caller closed File: open it again
	}
	l.drop(opened || err == errStale)
	yieldAfter(handed)
	return err
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
	case <-l.closedChan():
	}
	return true
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

func (l *Flock) isClosing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing
}

// accept judges and completes a grant, after which sysIdentify said id and err.
func (l *Flock) accept(a *attempt, opened bool, id fileID, err error) error {
	if err != nil || id != l.desc.id {
		return l.stale(id, err)
	}
	if a.ctx.Err() != nil {
		return errEnded
	}
	if opened && !l.borrowed && l.opts.Flag&os.O_TRUNC != 0 {
		if err := l.desc.truncate(l.path); err != nil {
			return pathError("truncate", l.path, err)
		}
	}
	return nil
}

// verify returns errStale unless the path names the file that is open.
func (l *Flock) verify() error {
	if l.borrowed {
		return nil
	}
	id, err := sysIdentify(0, l.path)
	return l.stale(id, err)
}

// stale returns nil if sysIdentify of the path, which returned id and err, says that
// it names the file that is open, errStale if not, or another error.
func (l *Flock) stale(id fileID, err error) error {
	switch {
	case err == nil && id == l.desc.id:
		return nil
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return errStale
	}
	return pathError("stat", l.path, err)
}

// When a process has so many descriptors that their table must grow, Linux makes
// every open(2) wait some 10 ms, and Go's runtime starts a thread, which it keeps,
// for each goroutine that comes meanwhile: 200 for a burst of 3000. So not more than
// maxOpening goroutines open at a time; of the others one looks for a place, and the
// rest wait for it to find one.
const maxOpening = 32

var (
	opening  atomic.Int32
	openTurn = make(chan struct{}, 1)
)

// awaitOpening waits for a place, for a goroutine that was counted but found none.
func (l *Flock) awaitOpening(a *attempt) error {
	opening.Add(-1)
	a.waits()
	closed := l.closedChan()
	select {
	case openTurn <- struct{}{}:
	case <-a.ctx.Done():
		return errEnded
	case <-closed:
		return fs.ErrClosed
	}
	defer func() { <-openTurn }()
	if opening.Add(1) <= maxOpening {
		return nil
	}
	timer := time.NewTimer(openProbe)
	defer timer.Stop()
	for {
		opening.Add(-1)
		select {
		case <-timer.C:
		case <-a.ctx.Done():
			return errEnded
		case <-closed:
			return fs.ErrClosed
		}
		if opening.Add(1) <= maxOpening {
			return nil
		}
		timer.Reset(openProbe)
	}
}

// openProbe is how often one goroutine of the process looks for a place to open.
const openProbe = 200 * time.Microsecond

// openAfter opens the file after a first try ended in err.
func (l *Flock) openAfter(a *attempt, err error) error {
	var d descriptor
	if l.opts.Flag == 0 {
		d, err = openDefault(l.path, l.opts.Perm, err)
	}
	if err == errBusy && !a.try {
		// Another process has a lease on the file: open(2) would wait until it
		// is broken, which no context could end. So it was asked not to wait,
		// and is asked again.
		a.waits()
		b := newBackoff(l.opts.Poll)
		defer b.stop()
		for err == errBusy {
			if err := b.sleep(a.ctx, l.closedChan()); err != nil {
				return err
			}
			flag, perm := l.opts.openArgs()
			d, err = sysOpen(l.path, flag, perm)
			if err != nil && l.opts.Flag == 0 {
				d, err = openDefault(l.path, l.opts.Perm, err)
			}
		}
	}
	switch err {
	case nil:
		l.desc = d
		return nil
	case errBusy:
		return err
	}
	return pathError("open", l.path, err)
}

// openDefault opens path where Options.Flag is zero, after a first try for reading
// and writing ended in err.
//
// O_CREATE comes second: in a sticky, world-writable directory Linux refuses it on
// the file of somebody else (fs.protected_regular), even for locking. So the file
// can appear or vanish in between; whoever does that for ever has made it theirs.
func openDefault(path string, perm fs.FileMode, err error) (d descriptor, _ error) {
	for range 8 {
		switch {
		case mayRead(err):
			d, rerr := sysOpen(path, os.O_RDONLY, 0)
			if rerr == nil {
				return d, nil
			}
			if !errors.Is(rerr, fs.ErrNotExist) {
				return d, err
			}
		case !errors.Is(err, fs.ErrNotExist):
			return d, err
		}
		if d, err = sysOpen(path, os.O_RDWR|os.O_CREATE, perm); err == nil || !mayRead(err) {
			return d, err
		}
		if d, rerr := sysOpen(path, os.O_RDWR, 0); rerr == nil {
			return d, nil
		} else if mayRead(rerr) {
			err = rerr
		}
	}
	return d, err
}

// mayRead reports whether after err, from opening a file for reading and writing,
// it may be possible to open it for reading.
func mayRead(err error) bool {
	return errors.Is(err, fs.ErrPermission) || slices.ContainsFunc(writeRefusals, func(e error) bool { return errors.Is(err, e) })
}

// request returns a request for the handle's lock.
func (l *Flock) request(o op) request {
	return request{op: o, mechanism: l.opts.Mechanism, start: l.opts.Start, length: l.opts.Length}
}

// take asks the kernel for the lock: nil, errBusy, or another error.
func (l *Flock) take(m Mode) error {
	r := l.request(opTry)
	r.mode = m
	if l.borrowed && m == Shared {
		return l.lend(r)
	}
	return l.desc.lock(r)
}

// give gives the lock back to the kernel.
func (l *Flock) give(m Mode) error {
	l.q.publish()
	r := l.request(opUnlock)
	if l.borrowed && m == Shared {
		return l.takeBack(r)
	}
	return l.desc.lock(r)
}

// release gives back the held lock. The caller then calls leave.
func (l *Flock) release() error {
	if err := l.give(l.mode); err != nil {
		return pathError("unlock", l.path, err)
	}
	return nil
}

// leave takes l, which does not hold the lock any more, off its queue's holders,
// and with quit off the queue.
func (l *Flock) leave(quit bool) (handed bool) {
	q := l.q
	q.mu.Lock()
	q.removeHolder(l)
	handed = q.gate.leave(l.mode)
	if quit {
		q.quit()
		l.q = nil
	}
	q.mu.Unlock()
	return handed
}

// drop closes the file of an unlocked handle if all is set, and otherwise keeps it.
func (l *Flock) drop(all bool) {
	if !all && !(l.borrowed && l.guard == nil) {
		return
	}
	if q := l.q; q != nil {
		q.mu.Lock()
		q.quit()
		q.mu.Unlock()
	}
	l.mu.Lock()
	l.q = nil
	l.unguard()
	d := l.desc
	if !l.borrowed {
		l.desc = descriptor{}
	}
	l.mu.Unlock()
	if !l.borrowed {
		d.close()
	}
}

// remove removes the file if the path still names it. A shared lock is made
// exclusive first, since another holder would go on with a file that is gone; if
// that fails, the other holder is left to remove it.
func (l *Flock) remove() error {
	// Where the caller closed File the lock went with it, and others work on the
	// file by now.
	if err := l.desc.control(func(uintptr) error { return nil }); err != nil {
		return err
	}
	if l.mode == Shared {
		r := l.request(opTry)
		r.convert = true
		if err := l.desc.lock(r); err != nil {
			return nil
		}
	}
	err := l.verify()
	if err == nil {
		l.q.publish() // the successor can be locked from now on
		if err = os.Remove(l.path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil || err == errStale {
		return nil
	}
	if l.mode == Shared {
		r := l.request(opTry)
		r.mode, r.convert = Shared, true
		l.desc.lock(r)
	}
	return pathError("remove", l.path, err)
}

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
		if err := q.retreat(a.ctx, l.closedChan(), m); err != nil {
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
		err := b.sleep(a.ctx, l.closedChan())
		b.stop()
		if err != nil {
			return err
		}
		if err := l.take(m); err != errBusy {
			return err
		}
	}
}

// upgrade makes a shared lock exclusive.
func (l *Flock) upgrade(a *attempt) error {
	q := l.q
	q.mu.Lock()
	if q.readers > 1 {
		a.waits()
	}
	if err := q.beAlone(a.ctx, l.closedChan()); err != nil {
		return err
	}
	l.unlend()
	err := l.exchange(a, Exclusive)
	if err != nil {
		if !errors.Is(err, ErrNotLocked) {
			l.relend()
		}
		q.mu.Lock()
		q.share()
		q.mu.Unlock()
	}
	return err
}

// downgrade makes an exclusive lock shared.
func (l *Flock) downgrade(a *attempt) error {
	q := l.q
	q.publish()
	err := l.exchange(a, Shared)
	if err == nil {
		l.relend()
		q.mu.Lock()
		q.share()
		q.mu.Unlock()
	}
	return err
}

// exchange asks the kernel to replace the held lock by one in mode m, alone in this
// process. On an error the old lock is still held, or lost and a *lostError returned.
func (l *Flock) exchange(a *attempt, m Mode) error {
	r := l.request(opTry)
	r.mode, r.convert = m, true
	err := l.desc.lock(r)
	if err == errBusy {
		a.waits()
		q := l.q
		q.mu.Lock()
		q.kernel = true
		q.mu.Unlock()
		err = l.await(a, m)
		q.mu.Lock()
		q.kernel = false
		q.mu.Unlock()
	}
	if l.opts.Mechanism == OFD {
		if err == nil {
			l.q.observe(false)
		}
		return err
	}
	// flock(2): "converting a lock is not guaranteed to be atomic: the existing
	// lock is first removed, and then a new lock is established."
	if err != nil {
		r.mode = 1 - m
		if back := l.desc.lock(r); back != nil {
			return &lostError{err}
		}
	}
	l.q.observe(false)
	if verr := l.verify(); verr != nil {
		r.op = opUnlock
		l.desc.lock(r)
		if verr == errStale {
			verr = errReplaced
		}
		return &lostError{verr}
	}
	return err
}

var errReplaced = errors.New("the file was removed or replaced while another process had the lock")
