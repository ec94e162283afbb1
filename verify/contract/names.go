package main

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/flockctx/flockctx"
)

// names are the checks of a file whose name the peer gives to another one, while a
// handle here is open but unlocked, or has been closed.
var names = []check{
	{"kept/removed", func(p *pair) { kept(p, func() { p.peerDoes(order{Do: "remove", Path: p.there + "/lock"}) }) }},
	{"kept/replaced", func(p *pair) { kept(p, p.peerReplaces) }},
	{"kept/aside", func(p *pair) { kept(p, p.peerMoves) }},
	{"known/removed", func(p *pair) { knownName(p, func() { p.peerDoes(order{Do: "remove", Path: p.there + "/lock"}) }) }},
	{"known/replaced", func(p *pair) { knownName(p, p.peerReplaces) }},
	{"known/aside", func(p *pair) { knownName(p, p.peerMoves) }},
}

// peerReplaces renames another file onto the path, where that can be done to a file
// that is open.
func (p *pair) peerReplaces() {
	p.peerDoes(order{Do: "create", Path: p.there + "/next"})
	p.peerRenames(p.there+"/next", p.there+"/lock")
}

// peerMoves renames the file away and makes a new one.
func (p *pair) peerMoves() {
	p.peerRenames(p.there+"/lock", p.there+"/old")
	p.peerDoes(order{Do: "create", Path: p.there + "/lock"})
}

func (p *pair) peerRenames(from, to string) {
	if err := p.do(order{Do: "rename", Path: from, To: to}); err != nil {
		p.none("an open file cannot be renamed: %v", err)
	}
}

// kept: the unlocked handle here has the old file open.
func kept(p *pair, change func()) {
	l := p.must(p.path, exclusive)
	if err := l.Unlock(); err != nil {
		p.failf("%v", err)
	}
	change()
	p.peerHolds(p.there+"/lock", exclusive)
	if err := l.TryLock(); kindOf(err) != locked {
		p.failf("the kept handle's try beside the peer: %v", err)
	}
	p.peerCloses(p.there + "/lock")
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	if err := l.Lock(ctx); err != nil {
		p.failf("the kept handle, the path free: %v", err)
	}
	p.peerIs(locked, p.there+"/lock", exclusive)
}

// knownName: the system here has the old file in its cache of names.
func knownName(p *pair, change func()) {
	p.must(p.path, exclusive).Close()
	change()
	p.peerHolds(p.there+"/lock", exclusive)
	p.is(locked, p.path, exclusive)
	p.peerCloses(p.there + "/lock")
	p.must(p.path, exclusive)
	p.peerIs(locked, p.there+"/lock", exclusive)
}

// churns: both remove the file with each Close; one at a time is inside.
func churns(p *pair) {
	const n = 25
	done := make(chan error, 1)
	go func() { done <- p.do(order{Do: "churn", Path: p.there + "/lock", N: n}) }()
	err := churn(p.path, n)
	if perr := <-done; perr != nil {
		p.failf("the peer: %v", perr)
	}
	if err != nil {
		p.failf("%v", err)
	}
}

// churn locks with Remove, n times. Inside it makes a file that must not exist.
func churn(path string, n int) error {
	for i := range n {
		l, err := lock(path, &flockctx.Options{Remove: true}, long)
		if err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
		inside, err := os.OpenFile(path+".inside", os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			inside.Close()
			err = os.Remove(path + ".inside")
		}
		if cerr := l.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("round %d: two are inside, or: %w", i, err)
		}
	}
	return nil
}

// counts: both raise a number in the locked file; none is lost.
func counts(p *pair, o flockctx.Options) {
	const n = 50
	done := make(chan error, 1)
	p.must(p.path, o).Close()
	if err := os.WriteFile(p.path, fmt.Appendf(nil, "%010d", 0), 0o600); err != nil {
		p.failf("%v", err)
	}
	go func() { done <- p.do(order{Do: "count", Path: p.there + "/lock", Options: o, N: n}) }()
	err := count(p.path, &o, n)
	if perr := <-done; perr != nil {
		p.failf("the peer: %v", perr)
	}
	if err != nil {
		p.failf("%v", err)
	}
	l := p.must(p.path, o)
	if got, err := number(l.File()); err != nil || got != 2*n {
		p.failf("counted to %d of %d: %v", got, 2*n, err)
	}
}

// count raises the number in the file n times, each under the lock of one handle.
func count(path string, o *flockctx.Options, n int) error {
	l := flockctx.New(path, o)
	defer l.Close()
	for range n {
		ctx, cancel := context.WithTimeout(context.Background(), long)
		err := l.Lock(ctx)
		cancel()
		if err != nil {
			return err
		}
		got, err := number(l.File())
		if err == nil {
			_, err = l.File().WriteAt(fmt.Appendf(nil, "%010d", got+1), 0)
		}
		if uerr := l.Unlock(); err == nil {
			err = uerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// number reads it. It has always ten digits: a client of a file server may know an old
// size of the file for a second.
func number(f *os.File) (int, error) {
	b := make([]byte, 10)
	if _, err := f.ReadAt(b, 0); err != nil {
		return 0, err
	}
	return strconv.Atoi(string(b))
}
