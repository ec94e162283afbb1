package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/flockctx/flockctx"
)

// A check is one promise. It says nothing on success.
type check struct {
	name string
	run  func(*pair)
}

// soon is long enough for a wait to have begun, mostly; where it has not, a check
// says less than it could.
const soon = 300 * time.Millisecond

// long is more than any wait here should take.
const long = 40 * time.Second

var (
	exclusive = flockctx.Options{}
	shared    = flockctx.Options{Mode: flockctx.Shared}
	ofd       = flockctx.Options{Mechanism: flockctx.OFD}
	ofdShared = flockctx.Options{Mechanism: flockctx.OFD, Mode: flockctx.Shared}
)

var checks = append([]check{
	{"exclusive", func(p *pair) { excludes(p, exclusive, shared) }},
	{"exclusive/ofd", func(p *pair) { excludes(p, ofd, ofdShared) }},
	{"shared", func(p *pair) { shares(p, exclusive, shared) }},
	{"shared/ofd", func(p *pair) { shares(p, ofd, ofdShared) }},
	{"ranges", ranges},
	{"ended", endedBefore},
	{"convert", func(p *pair) { converts(p, exclusive) }},
	{"convert/ofd", func(p *pair) { converts(p, ofd) }},
	{"set", lockAll},
	{"killed", killed},
	{"directory", func(p *pair) { p.heldByOne(p.dir, p.there, exclusive) }},
	{"readonly", readOnly},
	{"hardlink", hardLink},
	{"mechanisms", mechanisms},
	{"count", func(p *pair) { counts(p, exclusive) }},
	{"count/ofd", func(p *pair) { counts(p, ofd) }},
	{"churn", churns},
}, append(waits, names...)...)

// try locks here.
func (p *pair) try(path string, o flockctx.Options) (*flockctx.Flock, error) {
	l, err := flockctx.TryLock(path, &o)
	if err == nil {
		p.cleanup(func() { l.Close() })
	}
	return l, err
}

// must locks here.
func (p *pair) must(path string, o flockctx.Options) *flockctx.Flock {
	l, err := p.try(path, o)
	switch kindOf(err) {
	case fine:
		return l
	case unsupported:
		p.none("%v", err)
	}
	p.failf("not locked here: %v", err)
	return nil
}

// peerHolds has the peer lock.
func (p *pair) peerHolds(path string, o flockctx.Options) {
	a, err := p.ask(order{Do: "lock", Handle: path, Path: path, Options: o, Timeout: long})
	switch {
	case err != nil:
		p.failf("the peer: %v", err)
	case a.Kind == unsupported:
		p.none("%s", a.Text)
	case a.Kind != fine:
		p.failf("not locked at the peer: %s", a.Text)
	}
}

// peerIs expects what comes of a try of the peer's.
func (p *pair) peerIs(want, path string, o flockctx.Options) {
	a, err := p.ask(order{Do: "lock", Handle: "tried", Path: path, Options: o})
	if err != nil {
		p.failf("the peer: %v", err)
	}
	if a.Kind == fine {
		p.peerDoes(order{Do: "close", Handle: "tried"})
	}
	if a.Kind != want {
		p.failf("the peer's try: want %q, got %q (%s)", want, a.Kind, a.Text)
	}
}

// peerDoes has the peer do what cannot fail.
func (p *pair) peerDoes(o order) {
	if err := p.do(o); err != nil {
		p.failf("the peer's %s: %v", o.Do, err)
	}
}

func (p *pair) peerCloses(path string) { p.peerDoes(order{Do: "close", Handle: path}) }

// is expects what comes of a try here.
func (p *pair) is(want, path string, o flockctx.Options) {
	l, err := p.try(path, o)
	if err == nil {
		l.Close()
	}
	if kindOf(err) != want {
		p.failf("a try here: want %q, got %v", want, err)
	}
}

func excludes(p *pair, x, s flockctx.Options) {
	l := p.must(p.path, x)
	p.peerIs(locked, p.there+"/lock", x)
	p.peerIs(locked, p.there+"/lock", s)
	if err := l.Unlock(); err != nil {
		p.failf("%v", err)
	}
	p.peerHolds(p.there+"/lock", x)
	p.is(locked, p.path, x)
	p.is(locked, p.path, s)
	if err := l.TryLock(); kindOf(err) != locked {
		p.failf("the kept handle's try: %v", err)
	}
	p.peerCloses(p.there + "/lock")
	if err := l.TryLock(); err != nil {
		p.failf("after the peer's Close: %v", err)
	}
	p.peerIs(locked, p.there+"/lock", x)
}

func shares(p *pair, x, s flockctx.Options) {
	l := p.must(p.path, s)
	p.peerHolds(p.there+"/lock", s)
	p.is(locked, p.path, x)
	l.Close()
	p.is(fine, p.path, s)
	p.is(locked, p.path, x)
	p.peerCloses(p.there + "/lock")
	p.is(fine, p.path, x)
}

func ranges(p *pair) {
	low, high := ofd, ofd
	low.Length = 100
	high.Start = 100
	l := p.must(p.path, low)
	p.peerHolds(p.there+"/lock", high)
	p.peerIs(locked, p.there+"/lock", low)
	p.is(locked, p.path, high)
	l.Close()
	p.peerIs(fine, p.there+"/lock", low)
}

// endedBefore: a context that was done before the call takes nothing.
func endedBefore(p *pair) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if l, err := flockctx.Lock(ctx, p.path, nil); kindOf(err) != ended {
		l.Close()
		p.failf("got %v", err)
	}
	p.peerIs(fine, p.there+"/lock", exclusive)
}

func converts(p *pair, x flockctx.Options) {
	s := x
	s.Mode = flockctx.Shared
	l := p.must(p.path, x)
	if err := l.Convert(context.Background(), flockctx.Shared); err != nil {
		p.failf("to shared: %v", err)
	}
	p.peerHolds(p.there+"/lock", s)
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	if err := l.Convert(ctx, flockctx.Exclusive); kindOf(err) != ended {
		p.failf("to exclusive, beside a shared one: %v", err)
	}
	p.peerCloses(p.there + "/lock")
	if !l.Locked() {
		p.failf("the lock is lost")
	}
	p.peerIs(locked, p.there+"/lock", x)
	if err := l.Convert(context.Background(), flockctx.Exclusive); err != nil {
		p.failf("to exclusive: %v", err)
	}
	p.peerIs(locked, p.there+"/lock", s)
}

// lockAll: nothing stays locked of a set that was not had.
func lockAll(p *pair) {
	p.peerHolds(p.there+"/b", exclusive)
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	paths := []string{p.dir + "/a", p.dir + "/b"}
	if s, err := flockctx.LockAll(ctx, paths, nil); kindOf(err) != ended {
		if s != nil {
			s.Close()
		}
		p.failf("got %v", err)
	}
	p.peerIs(fine, p.there+"/a", exclusive)
	p.peerCloses(p.there + "/b")
	s, err := flockctx.LockAll(context.Background(), paths, nil)
	if err != nil {
		p.failf("%v", err)
	}
	p.cleanup(func() { s.Close() })
	p.peerIs(locked, p.there+"/a", exclusive)
	p.peerIs(locked, p.there+"/b", exclusive)
}

// killed: the lock of a killed holder is free at once.
func killed(p *pair) {
	p.peerHolds(p.there+"/lock", exclusive)
	p.is(locked, p.path, exclusive)
	p.ask(order{Do: "die"})
	endPeer()
	start := time.Now()
	l, err := lock(p.path, &exclusive, long)
	if err != nil {
		p.failf("%v", err)
	}
	l.Close()
	if d := time.Since(start); d > *slack {
		p.failf("free only %v later", d.Round(time.Millisecond))
	}
	if p.peer, err = startPeer(); err != nil {
		p.failf("the peer: %v", err)
	}
}

// heldByOne: what is locked here is not locked at the peer, or it is refused.
func (p *pair) heldByOne(here, there string, o flockctx.Options) {
	p.must(here, o)
	p.peerIs(locked, there, o)
}

// readOnly: an exclusive lock of a file that is open for reading only is one, or is
// refused.
func readOnly(p *pair) {
	p.peerDoes(order{Do: "create", Path: p.there + "/lock"})
	f, err := os.Open(p.path)
	if err != nil {
		p.failf("%v", err)
	}
	p.cleanup(func() { f.Close() })
	l, err := flockctx.TryLockFile(f, nil)
	if err != nil {
		if kindOf(err) == locked || kindOf(err) == ended {
			p.failf("free, but %v", err)
		}
		p.none("refused: %v", err)
	}
	p.cleanup(func() { l.Close() })
	p.peerIs(locked, p.there+"/lock", exclusive)
}

// hardLink: two names of one file are one lock.
func hardLink(p *pair) {
	p.peerDoes(order{Do: "create", Path: p.there + "/lock"})
	if err := os.Link(p.path, p.dir+"/other"); err != nil {
		if errors.Is(err, os.ErrExist) {
			p.failf("%v", err)
		}
		p.none("%v", err)
	}
	p.must(p.path, exclusive)
	p.peerIs(locked, p.there+"/other", exclusive)
}

// mechanisms says whether BSD and OFD are one lock here.
func mechanisms(p *pair) {
	p.must(p.path, exclusive)
	a, err := p.ask(order{Do: "lock", Handle: "tried", Path: p.there + "/lock", Options: ofd})
	switch {
	case err != nil:
		p.failf("the peer: %v", err)
	case a.Kind == fine:
		p.text = "BSD and OFD do not meet"
	case a.Kind == locked:
		p.text = "BSD and OFD meet"
	default:
		p.none("%s", a.Text)
	}
}
