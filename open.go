package flockctx

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flockctx/flockctx/internal/sys"
)

// When a process has so many descriptors that their table must grow, Linux makes
// every open(2) wait some 10 ms, and Go's runtime starts a thread, which it keeps,
// for each goroutine that comes meanwhile: 200 for a burst of 3000. So not more than
// maxOpening goroutines open at a time; of the others one looks for a place, and the
// rest wait for it to find one.
//
// On a mount that does not answer, open(2) does not return. Where none of maxOpening
// goroutines has come back within openPatience they are stuck, and take no place any more:
// whoever uses another file system must not wait for them. But each has a thread, and a
// program dies of too many: past maxStuck of them everybody waits, as long as the context
// lets them.
const (
	maxOpening   = 32
	openPatience = 20 * time.Millisecond

	// openProbe is how often the one that looks for a place does so.
	openProbe = 200 * time.Microsecond
)

// maxStuck is how many goroutines may be stuck in open(2).
var maxStuck = sync.OnceValue(func() int32 { return int32(min(1000, sys.MaxThreads()/4)) })

var errStuck = errors.New("too many files are being opened, on a file system that does not answer")

// A batch counts goroutines that open a file.
type batch struct{ n atomic.Int32 }

var (
	opening = func() *atomic.Pointer[batch] { // the one to enter
		p := new(atomic.Pointer[batch])
		p.Store(new(batch))
		return p
	}()
	openTurn = make(chan struct{}, 1)
	stuck    []*batch // guarded by a token in openTurn
	tries    batch    // TryLocks that found no place
)

// enter counts one more, unless there are enough.
func (b *batch) enter() bool {
	if b.n.Add(1) <= maxOpening {
		return true
	}
	b.n.Add(-1)
	return false
}

// giveUp makes room for others than those in b, which are stuck, unless there are too many
// of those. It is called by the one whose turn it is to look for a place.
func giveUp(b *batch) {
	stuck = slices.DeleteFunc(stuck, func(b *batch) bool { return b.n.Load() == 0 })
	n := b.n.Load()
	for _, b := range stuck {
		n += b.n.Load()
	}
	if n <= maxStuck() && opening.CompareAndSwap(b, new(batch)) {
		stuck = append(stuck, b)
	}
}

// awaitOpening waits for a place, and returns the batch in which it is.
func (l *Flock) awaitOpening(a *attempt) (*batch, error) {
	a.waits()
	closed := l.closedFor(a)
	select {
	case openTurn <- struct{}{}:
	case <-a.done:
		return nil, errEnded
	case <-closed:
		return nil, fs.ErrClosed
	}
	defer func() { <-openTurn }()
	timer := time.NewTimer(openProbe)
	defer timer.Stop()
	for began := nanotime(); ; {
		b := opening.Load()
		if b.enter() {
			return b, nil
		}
		if nanotime()-began >= int64(openPatience) {
			giveUp(b)
			if b != opening.Load() {
				continue
			}
			began = nanotime()
		}
		select {
		case <-timer.C:
		case <-a.done:
			return nil, errEnded
		case <-closed:
			return nil, fs.ErrClosed
		}
		timer.Reset(openProbe)
	}
}

// open opens the handle's file, which is not open. The caller owns l.desc.
func (l *Flock) open(a *attempt) (err error) {
	b := opening.Load()
	if !b.enter() {
		if a.try { // which may not wait
			if b = &tries; b.n.Add(1) > maxStuck() {
				b.n.Add(-1)
				return pathError("open", l.Name(), errStuck)
			}
		} else if b, err = l.awaitOpening(a); err != nil {
			return err
		}
	}
	var d sys.Descriptor
	if l.opts.Root != nil || l.opts.ExactPerm {
		d, err = l.openAs()
	} else {
		flag, perm := l.opts.openArgs()
		if d, err = sys.Open(l.at, flag, perm); err != nil && l.opts.flagless() {
			d, err = openDefault(l.opener(), l.opts.Perm, err)
		}
	}
	b.n.Add(-1)
	if err == errBusy && !a.try {
		d, err = l.openLeased(a)
	}
	if err == nil && (l.opts.Fair || l.opts.Mechanism == OFD) {
		if err = l.opts.suits(&d); err != nil {
			d.Close()
		}
	}
	switch err {
	case nil:
		l.desc = d
		return nil
	case errBusy, errEnded, fs.ErrClosed:
		return err
	}
	return pathError("open", l.Name(), err)
}

// suits returns why the file cannot be locked as o says.
func (o *Options) suits(d *sys.Descriptor) error {
	if o.Fair {
		return d.CanQueue()
	}
	return d.CanLockRanges()
}

// openLeased opens a file on which another process has a lease: open(2) would wait
// until that is broken, which no context could end. So it was asked not to wait, and
// is asked again.
func (l *Flock) openLeased(a *attempt) (d sys.Descriptor, err error) {
	a.waits()
	b := newBackoff(l.opts.Poll)
	defer b.stop()
	for {
		if err := b.sleep(a, l.closedFor(a), nil); err != nil {
			return d, err
		}
		if d, err = l.openAs(); err != errBusy {
			return d, err
		}
	}
}

// An opener opens one path, as the options have it.
type opener struct {
	path  string
	root  *os.Root
	exact bool
}

func (l *Flock) opener() opener { return opener{l.at, l.opts.Root, l.opts.ExactPerm} }

// openAs opens the file as the options say.
func (l *Flock) openAs() (d sys.Descriptor, err error) {
	o := l.opener()
	flag, perm := l.opts.openArgs()
	if d, err = o.open(flag, perm); err != nil && l.opts.flagless() {
		d, err = openDefault(o, l.opts.Perm, err)
	}
	return d, err
}

func (o opener) open(flag int, perm fs.FileMode) (d sys.Descriptor, err error) {
	if !o.exact || flag&os.O_CREATE == 0 {
		return o.openPlain(flag, perm)
	}
	// Whether it is created has to be known. It can appear or vanish in between.
	for range 8 {
		if flag&os.O_EXCL == 0 {
			if d, err = o.openPlain(flag&^os.O_CREATE, 0); !errors.Is(err, fs.ErrNotExist) {
				return d, err
			}
		}
		if o.root == nil {
			d, err = sys.Create(o.path, flag, perm)
		} else {
			d, err = sys.CreateIn(o.root, o.path, flag, perm)
		}
		if flag&os.O_EXCL != 0 || !errors.Is(err, fs.ErrExist) {
			return d, err
		}
	}
	return d, err
}

func (o opener) openPlain(flag int, perm fs.FileMode) (sys.Descriptor, error) {
	if o.root == nil {
		return sys.Open(o.path, flag, perm)
	}
	return sys.OpenIn(o.root, o.path, flag, perm)
}

// openDefault opens a path where Options.Flag is zero, after a first try for reading
// and writing ended in err.
//
// O_CREATE comes second: in a sticky, world-writable directory Linux refuses it on
// the file of somebody else (fs.protected_regular), even for locking. So the file
// can appear or vanish in between; whoever does that for ever has made it theirs.
func openDefault(o opener, perm fs.FileMode, err error) (d sys.Descriptor, _ error) {
	for range 8 {
		switch {
		case sys.MayRead(err):
			d, rerr := o.open(os.O_RDONLY, 0)
			if rerr == nil {
				return d, nil
			}
			if rerr == errBusy || errors.Is(rerr, errors.ErrUnsupported) {
				return d, rerr
			}
			if !errors.Is(rerr, fs.ErrNotExist) {
				return d, err
			}
		case !errors.Is(err, fs.ErrNotExist):
			return d, err
		}
		if d, err = o.open(os.O_RDWR|os.O_CREATE, perm); err == nil || !sys.MayRead(err) {
			return d, err
		}
		if d, rerr := o.open(os.O_RDWR, 0); rerr == nil || rerr == errBusy {
			return d, rerr
		} else if sys.MayRead(rerr) {
			err = rerr
		}
	}
	return d, err
}
