package lease_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/locker"
)

const ttl = 300 * time.Millisecond

type key struct{}

func proof(sent lease.Instant) *lease.Proof {
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "value"))
	cancel() // its end is none of the proof's business
	return lease.New(ctx, ttl, sent, "the test")
}

func TestAProofEndsWithItsTime(t *testing.T) {
	sent := lease.Now()
	p := proof(sent)
	if p.Err() != nil || p.Value(key{}) != "value" {
		t.Fatal(p.Err(), p.Value(key{}))
	}
	<-p.Done()
	if took := time.Duration(lease.Now() - sent); took < ttl-ttl/lease.Margin {
		t.Errorf("ended after %v", took)
	}
	if err := context.Cause(p); !errors.Is(err, locker.ErrLost) || !strings.Contains(err.Error(), "the test") {
		t.Error(err)
	}
	if p.Extend(lease.Now()) {
		t.Error("an answer after the end revived it")
	}
	if err := p.Release(); !errors.Is(err, locker.ErrLost) {
		t.Error(err)
	}
	if until := p.Valid(); time.Until(until) > 0 {
		t.Errorf("valid until %v", until)
	}
}

func TestTheTimeCountsFromTheRequest(t *testing.T) {
	// An answer that was under way for longer than the TTL proves nothing.
	p := proof(lease.Now() - lease.Instant(ttl))
	if p.Err() == nil {
		t.Error("it is still valid")
	}
	// One that was under way for half of it proves the other half.
	sent := lease.Now() - lease.Instant(ttl/2)
	p = proof(sent)
	if left := time.Until(p.Valid()); left <= 0 || left > ttl/2-ttl/lease.Margin {
		t.Errorf("%v left of %v", left, ttl)
	}
	p.Release()
}

func TestExtend(t *testing.T) {
	p := proof(lease.Now())
	begin := time.Now()
	for time.Since(begin) < 3*ttl {
		if !p.Extend(lease.Now()) {
			t.Fatal(context.Cause(p))
		}
		before := p.Valid()
		// Answers may overtake each other.
		p.Extend(lease.Now() - lease.Instant(ttl/2))
		if after := p.Valid(); after.Before(before.Add(-ttl / 4)) {
			t.Fatalf("an older answer took away %v", before.Sub(after))
		}
		time.Sleep(ttl / 10)
	}
	if err := p.Release(); err != nil {
		t.Fatal(err)
	}
	if context.Cause(p) != locker.ErrReleased || p.Err() == nil {
		t.Error(p.Err(), context.Cause(p))
	}
	p.Lose(errors.New("too late"))
	if context.Cause(p) != locker.ErrReleased {
		t.Error("it ended twice")
	}
	if err := p.Release(); !errors.Is(err, locker.ErrReleased) {
		t.Error(err)
	}
}

// TestAWaiterOutlastsSilence: only an owner's proof ends by itself.
func TestAWaiterOutlastsSilence(t *testing.T) {
	sent := lease.Now()
	p := lease.Queue(t.Context(), ttl, sent, "the test")
	time.Sleep(2 * ttl)
	if p.Err() != nil || p.Own(0) || p.Err() != nil {
		t.Fatalf("after 2 TTLs of silence: %v", context.Cause(p))
	}
	if !p.Extend(lease.Now()) || p.Own(ttl) || !p.Own(ttl/2) {
		t.Fatalf("after an answer: %v", context.Cause(p))
	}
	<-p.Done()
	if err := context.Cause(p); !errors.Is(err, locker.ErrLost) {
		t.Error(err)
	}
	for _, end := range []func(*lease.Proof){
		func(p *lease.Proof) { p.Lose(errors.New("gone")) },
		func(p *lease.Proof) { p.Release() },
	} {
		p = lease.Queue(t.Context(), ttl, lease.Now(), "the test")
		if end(p); p.Err() == nil || p.Own(0) || p.Extend(lease.Now()) {
			t.Error("it lives on")
		}
	}
}

func TestAnswer(t *testing.T) {
	var a lease.Answer
	started, release := make(chan bool), make(chan error)
	first := make(chan error)
	go func() {
		first <- a.Once(context.Background(), func() error { close(started); return <-release }, nil)
	}()
	<-started
	unsure := func(err error) error { return errors.Join(locker.ErrUnsure, err) }
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	never := func() error { t.Error("released twice"); return nil }
	if err := a.Once(ctx, never, unsure); !errors.Is(err, locker.ErrUnsure) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	answer := errors.New("the answer")
	release <- answer
	if err := <-first; err != answer {
		t.Error(err)
	}
	if err := a.Once(ctx, never, unsure); err != answer {
		t.Error(err)
	}
}

func TestReach(t *testing.T) {
	ctx, cancel := lease.Reach(t.Context())
	if d, ok := ctx.Deadline(); !ok || time.Until(d) > lease.Patience || time.Until(d) < lease.Patience/2 {
		t.Errorf("deadline %v, %v", d, ok)
	}
	cancel()
	own, cancelOwn := context.WithTimeout(t.Context(), 2*lease.Patience)
	defer cancelOwn()
	ctx, cancel = lease.Reach(own)
	defer cancel()
	d, _ := own.Deadline()
	if got, _ := ctx.Deadline(); !got.Equal(d) {
		t.Errorf("%v, the caller's is %v", got, d)
	}
}

// TestEnded: an error tells whether a server or a holder kept the call waiting, and whose
// deadline it was.
func TestEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	call, err := lease.Begin(ctx, "engine", "name", locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := call.Ended(ctx, nil); errors.Is(err, locker.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	err = call.Ended(ctx, fmt.Errorf("no route: %w", context.DeadlineExceeded))
	if !errors.Is(err, locker.ErrUnavailable) || !errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no route") {
		t.Error(err)
	}
}
