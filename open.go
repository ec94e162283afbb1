package flockctx

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

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
	closed := l.closedFor(a)
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

// open opens the handle's file, which is not open. The caller owns l.desc.
func (l *Flock) open(a *attempt) error {
	if opening.Add(1) > maxOpening && !a.try {
		if err := l.awaitOpening(a); err != nil {
			return err
		}
	}
	flag, perm := l.opts.openArgs()
	d, err := openPath(l.path, flag, perm)
	if err != nil && l.opts.Flag == 0 {
		d, err = openDefault(l.path, l.opts.Perm, err)
	}
	opening.Add(-1)
	if err == errBusy && !a.try {
		d, err = l.openLeased(a)
	}
	switch err {
	case nil:
		l.desc = d
		return nil
	case errBusy, errEnded, fs.ErrClosed:
		return err
	}
	return pathError("open", l.path, err)
}

// openLeased opens a file on which another process has a lease: open(2) would wait
// until that is broken, which no context could end. So it was asked not to wait, and
// is asked again.
func (l *Flock) openLeased(a *attempt) (d descriptor, err error) {
	a.waits()
	b := newBackoff(l.opts.Poll)
	defer b.stop()
	for {
		if err := b.sleep(a.ctx, l.closedFor(a)); err != nil {
			return d, err
		}
		flag, perm := l.opts.openArgs()
		d, err = sysOpen(l.path, flag, perm)
		if err != nil && l.opts.Flag == 0 {
			d, err = openDefault(l.path, l.opts.Perm, err)
		}
		if err != errBusy {
			return d, err
		}
	}
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
			if rerr == errBusy {
				return d, rerr
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
		if d, rerr := sysOpen(path, os.O_RDWR, 0); rerr == nil || rerr == errBusy {
			return d, rerr
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
