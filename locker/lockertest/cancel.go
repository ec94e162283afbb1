package lockertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/flockctx/flockctx/locker"
)

// cancellations ends ctx 600 times: in the queue, around the grant of a free lock, and
// when a holder's Unlock has just returned. Of the last kind each that is not granted was
// granted on the server, or was about to be: the test is worth nothing without some.
func (s *suite) cancellations(t *testing.T) {
	const inQueue, atGrant, atHandOver, enough = 100, 200, 300, 50
	a, b := s.new(t), s.new(t)
	try := func(ctx context.Context) (granted bool) {
		h, err := b.Lock(ctx, "cancel", locker.Exclusive)
		switch {
		case err == nil:
			unlock(t, h)
		case !errors.Is(err, ctx.Err()) || ctx.Err() == nil:
			t.Error(err)
		}
		return err == nil
	}

	h := lock(t, a, "cancel")
	for i := range inQueue {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*2*time.Millisecond/inQueue)
		if try(ctx) {
			t.Error("two holders")
		}
		cancel()
	}
	unlock(t, h)

	var usual []time.Duration
	for range 9 {
		begin := time.Now()
		h := lock(t, b, "cancel")
		usual = append(usual, time.Since(begin))
		unlock(t, h)
	}
	slices.Sort(usual)
	granted := 0
	for i := range atGrant {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*usual[len(usual)/2]/(atGrant*3/4))
		if try(ctx) {
			granted++
		}
		cancel()
	}
	t.Logf("a free lock takes %v; %d of %d were granted", usual[len(usual)/2], granted, atGrant)

	inside, tries := 0, 0
	for ; tries < atHandOver || inside < enough && tries < 3*atHandOver; tries++ { // more on an odd machine
		h := lock(t, a, "cancel")
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan bool)
		go func() { done <- try(ctx) }()
		s.queued(t, "cancel", 1)
		unlock(t, h)
		if tries%3 == 2 { // else at once
			for begin, d := time.Now(), rand.N(usual[len(usual)/2]/4+1); time.Since(begin) < d; {
			}
		}
		cancel()
		if !<-done {
			inside++
		}
	}
	t.Logf("%d of %d ended inside a grant", inside, tries)
	if inside < enough {
		t.Errorf("the test has no grip: it needs %d", enough)
	}

	begin := time.Now()
	h = lock(t, a, "cancel")
	t.Logf("the next one got the lock after %v", time.Since(begin))
	unlock(t, h)
	s.nothingLeft(t, begin)
}

func (s *suite) nothingLeft(t testing.TB, begin time.Time) {
	if s.faults.Residue == nil {
		return
	}
	eventually(t, func() string {
		if r := s.faults.Residue(t); len(r) > 0 {
			return fmt.Sprintf("%d left, the first is %s", len(r), r[0])
		}
		return ""
	})
	t.Logf("nothing is left on the server %v after the last cancel", time.Since(begin))
}
