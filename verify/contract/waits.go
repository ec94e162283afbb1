package main

import (
	"context"
	"time"

	"github.com/flockctx/flockctx"
)

// waits are the checks of waiting, each in three ways.
var waits = eachWait(map[string]func(*pair, flockctx.Options){
	"deadline": deadline,
	"cancel":   cancelled,
	"handover": handover,
	"removed":  removedWhileWaiting,
	"replaced": replacedWhileWaiting,
	"aside":    movedWhileWaiting,
	"unlinked": unlinkedByHolder,
}, "deadline", "cancel", "handover", "removed", "replaced", "aside", "unlinked")

func eachWait(run map[string]func(*pair, flockctx.Options), order ...string) (all []check) {
	for _, name := range order {
		for _, w := range []flockctx.Wait{flockctx.WaitAuto, flockctx.WaitBlock, flockctx.WaitPoll} {
			all = append(all, check{name + "/" + w.String(), func(p *pair) { run[name](p, flockctx.Options{Wait: w}) }})
		}
	}
	return all
}

// A waiting Lock, and what came of it.
type waiting struct {
	done   chan struct{}
	cancel context.CancelFunc
	lock   *flockctx.Flock
	err    error
}

// startWait begins to wait here, with a deadline that should not come.
func (p *pair) startWait(o flockctx.Options) *waiting {
	ctx, cancel := context.WithTimeout(context.Background(), long)
	w := &waiting{done: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(w.done)
		w.lock, w.err = flockctx.Lock(ctx, p.path, &o)
	}()
	p.cleanup(func() {
		cancel()
		select {
		case <-w.done:
		case <-time.After(*slack):
			return // a hang that the check reported
		}
		if w.err == nil {
			w.lock.Close()
		}
	})
	time.Sleep(soon)
	select {
	case <-w.done:
		if kindOf(w.err) == unsupported {
			p.none("%v", w.err)
		}
		p.failf("did not wait: %v", w.err)
	default:
	}
	return w
}

// granted expects that the wait ends with a lock that the peer respects.
func (p *pair) granted(w *waiting) {
	start := time.Now()
	<-w.done
	if w.err != nil {
		p.failf("%v", w.err)
	}
	p.peerIs(locked, p.there+"/lock", exclusive)
	if d := time.Since(start); d > *slack {
		p.failf("granted only %v after it was free", d.Round(time.Millisecond))
	}
}

func deadline(p *pair, o flockctx.Options) {
	p.peerHolds(p.there+"/lock", exclusive)
	for _, timeout := range []time.Duration{20 * time.Millisecond, 500 * time.Millisecond} {
		start := time.Now()
		_, err := lock(p.path, &o, timeout)
		if kindOf(err) == unsupported {
			p.none("%v", err)
		}
		if kindOf(err) != ended {
			p.failf("%v: %v", timeout, err)
		}
		switch late := time.Since(start) - timeout; {
		case late < 0:
			p.failf("%v: %v too early", timeout, -late)
		case late > *slack:
			p.failf("%v: %v late", timeout, late.Round(time.Millisecond))
		}
	}
}

func cancelled(p *pair, o flockctx.Options) {
	p.peerHolds(p.there+"/lock", exclusive)
	w := p.startWait(o)
	w.cancel()
	start := time.Now()
	<-w.done
	if kindOf(w.err) != ended {
		p.failf("%v", w.err)
	}
	if late := time.Since(start); late > *slack {
		p.failf("%v late", late.Round(time.Millisecond))
	}
	p.peerCloses(p.there + "/lock")
	p.peerIs(fine, p.there+"/lock", exclusive)
}

func handover(p *pair, o flockctx.Options) {
	p.peerHolds(p.there+"/lock", exclusive)
	w := p.startWait(o)
	p.peerCloses(p.there + "/lock")
	p.granted(w)
}

// removedWhileWaiting: the holder there removes the file and lets go.
func removedWhileWaiting(p *pair, o flockctx.Options) {
	p.peerHolds(p.there+"/lock", exclusive)
	w := p.startWait(o)
	p.peerDoes(order{Do: "remove", Path: p.there + "/lock"})
	p.peerCloses(p.there + "/lock")
	p.granted(w)
}

// replacedWhileWaiting: it replaces the file.
func replacedWhileWaiting(p *pair, o flockctx.Options) {
	p.peerHolds(p.there+"/lock", exclusive)
	w := p.startWait(o)
	p.peerReplaces()
	p.peerCloses(p.there + "/lock")
	p.granted(w)
}

// movedWhileWaiting: it moves the file aside and makes a new one.
func movedWhileWaiting(p *pair, o flockctx.Options) {
	p.peerHolds(p.there+"/lock", exclusive)
	w := p.startWait(o)
	p.peerMoves()
	p.peerCloses(p.there + "/lock")
	p.granted(w)
}

// unlinkedByHolder: the holder there is one with Options.Remove.
func unlinkedByHolder(p *pair, o flockctx.Options) {
	p.peerHolds(p.there+"/lock", flockctx.Options{Remove: true})
	w := p.startWait(o)
	p.peerCloses(p.there + "/lock")
	p.granted(w)
}
