package lockertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx/locker"
)

func (s *suite) needChildren(t testing.TB) {
	switch {
	case s.faults.Spec == "":
		t.Skip("SKIP: Faults.Spec is missing")
	case !mainCalled:
		t.Skip("SKIP: TestMain does not call lockertest.Main")
	}
}

func (s *suite) needLoss(t testing.TB) {
	if !s.traits.CanLose {
		t.Skip("SKIP: a lock of this engine cannot be lost")
	}
}

// processes count in a resource outside; with tokens, they are killed meanwhile.
func (s *suite) processes(t *testing.T) {
	s.needChildren(t)
	res := newResource(t)
	start := func() *child { return spawn(t, "counter", s.faults.Spec, res, nameEnv+"=count") }
	children := []*child{start(), start(), start()}
	more := func(n int) {
		t.Helper()
		from, _, _ := res.counts()
		eventually(t, func() string {
			if now, _, _ := res.counts(); now < from+n {
				return fmt.Sprintf("counted %d, not %d", now-from, n)
			}
			return ""
		})
	}
	more(60)
	// Without a fault nobody comes late. A lock that excludes nobody would hide behind
	// the tokens: the resource refuses whatever it breaks.
	if _, refused, _ := res.counts(); refused > 0 && !slices.ContainsFunc(children, (*child).hasLost) {
		t.Errorf("%d updates were refused, and nobody has lost the lock", refused)
	}
	if s.traits.Fenced {
		// Without a token, what a killed process has sent may arrive under the
		// next holder.
		for i := range 3 {
			children[i].cmd.Process.Kill()
			children[i] = start()
			more(5)
		}
	}
	for _, c := range children {
		c.in.Close()
		if err := c.cmd.Wait(); err != nil {
			t.Errorf("a child: %v, it said %q", err, c.lines)
		}
	}
	accepted, refused, lost := res.counts()
	t.Logf("%d updates, %d refused for their token, %d lost", accepted, refused, lost)
	if lost > 0 {
		t.Errorf("%d of %d updates were lost", lost, accepted)
	}
}

func (s *suite) killedHolder(t *testing.T) {
	s.needChildren(t)
	c := spawn(t, "holder", s.faults.Spec, newResource(t))
	c.say("lock killed")
	c.expect("locked")
	l := s.new(t)
	s.busy(t, l, "killed", locker.Exclusive)
	begin := time.Now()
	c.kill()
	h := lock(t, l, "killed")
	took := time.Since(begin)
	t.Logf("free after %v", took)
	limit := s.faults.KillFrees
	if limit == 0 {
		limit = s.traits.Cleanup + 5*time.Second // the machine may be slow
	}
	if took > limit {
		t.Errorf("free after %v, not within %v; Cleanup is %v", took, limit, s.traits.Cleanup)
	}
	unlock(t, h)
}

// frozenHolder is the case for fencing: a holder that is stopped for longer than the
// TTL, and goes on as if nothing had been.
func (s *suite) frozenHolder(t *testing.T) {
	s.needChildren(t)
	s.needLoss(t)
	if !canFreeze {
		t.Skip("SKIP: this system cannot stop a process")
	}
	res := newResource(t)
	a := spawn(t, "holder", s.faults.Spec, res)
	b := spawn(t, "holder", s.faults.Spec, res)
	a.say("lock frozen")
	first, _ := strconv.ParseUint(a.expect("locked"), 10, 64)
	a.say("put 1")
	if got := a.expect("put"); got != "ok" {
		t.Fatalf("put under the lock: %s", got)
	}
	a.freeze()
	begin := time.Now()
	b.say("lock frozen")
	second, _ := strconv.ParseUint(b.expect("locked"), 10, 64)
	t.Logf("the next one got the lock after %v", time.Since(begin))
	if s.traits.Fenced && second <= first {
		t.Errorf("token %d after %d", second, first)
	}
	b.say("put 2")
	if got := b.expect("put"); got != "ok" {
		t.Fatalf("put of the next holder: %s", got)
	}
	a.thaw()
	if s.traits.Fenced {
		a.say("put 3") // what it was about to do
		if got := a.expect("put"); got != "refused" {
			t.Errorf("put of the frozen holder: %s", got)
		}
	}
	if got := a.expect("ended"); got != "lost" {
		t.Errorf("its Context ended with %q", got)
	}
	a.say("unlock")
	if got := a.expect("unlocked"); got != "lost" {
		t.Errorf("its Unlock said %q", got)
	}
	b.say("unlock")
	if got := b.expect("unlocked"); got != "nil" {
		t.Errorf("the next holder's Unlock said %q", got)
	}
}

func (s *suite) broken(t *testing.T) {
	if len(s.faults.Break) == 0 {
		t.Skip("SKIP: Faults.Break is missing")
	}
	for how, takeAway := range s.faults.Break {
		t.Run(how, func(t *testing.T) {
			l := s.new(t)
			h := lock(t, l, "broken")
			begin := time.Now()
			takeAway(t, "broken")
			select {
			case <-h.Context().Done():
			case <-time.After(patience):
				t.Fatal("Context goes on")
			}
			t.Logf("Context ended %v after the call", time.Since(begin))
			if err := context.Cause(h.Context()); !errors.Is(err, locker.ErrLost) {
				t.Errorf("cause %v", err)
			} else {
				t.Log(err)
			}
			for range 2 {
				if err := h.Unlock(bg(t)); !errors.Is(err, locker.ErrLost) {
					t.Errorf("Unlock: %v", err)
				}
			}
			s.free(t, "broken")

			err := locker.Do(bg(t), l, "broken", locker.Exclusive, func(c context.Context) error {
				takeAway(t, "broken")
				<-c.Done()
				if err := context.Cause(c); !errors.Is(err, locker.ErrLost) {
					t.Errorf("cause in Do: %v", err)
				}
				return nil
			})
			if !errors.Is(err, locker.ErrLost) {
				t.Errorf("Do: %v", err)
			}
			s.free(t, "broken")

			// At once, before the news can have come.
			h = lock(t, l, "broken")
			takeAway(t, "broken")
			if err := h.Unlock(bg(t)); !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock at once: %v", err)
			}
			s.free(t, "broken")

			if s.faults.LongTTL == nil {
				t.Log("SKIP: Faults.LongTTL is missing")
				return
			}
			// The news comes by itself. With a short TTL it could also be the
			// next renewal that finds out.
			h = lock(t, s.faults.LongTTL(t), "broken")
			if until, _ := h.Valid(); time.Until(until) < 4*noticed {
				t.Fatalf("LongTTL is too short: valid until %v from now", time.Until(until))
			}
			takeAway(t, "broken")
			select {
			case <-h.Context().Done():
			case <-time.After(noticed):
				t.Errorf("Context goes on %v after the loss", noticed)
			}
			h.Unlock(bg(t))
			s.free(t, "broken")
		})
	}
}

// noticed is how long the news of a loss may take on a busy machine.
const noticed = 2 * time.Second

// A Overlap is the outcome of one partition.
type Overlap struct {
	Lost  time.Duration // from the partition to the end of the holder's Context
	Next  time.Duration // from the partition to the next grant
	Apart time.Duration // from the end of the holder's Context to the next grant
}

// Partition takes a lock with hold, and waits for it with wait; breaks the holder's
// network with cut, and returns when the waiter is granted the lock. hold returns a
// channel that is closed when the holder knows that it has lost; wait returns on the
// grant. It is exported for controls: clients that do it differently.
func Partition(t testing.TB, cut func(), hold func() (lost <-chan struct{}), wait func()) Overlap {
	lost := hold()
	granted := make(chan time.Time, 1)
	go func() { wait(); granted <- time.Now() }()
	// Anywhere in the rhythm of renewals.
	time.Sleep(200*time.Millisecond + rand.N(time.Second))
	ends := make(chan time.Time, 1)
	go func() { <-lost; ends <- time.Now() }()
	cut()
	begin := time.Now()
	next := <-granted
	var end time.Time
	select {
	case end = <-ends:
	case <-time.After(5 * time.Second):
		end = time.Now() // at the earliest
	}
	return Overlap{end.Sub(begin), next.Sub(begin), next.Sub(end)}
}

// Report logs the outcomes and returns how many had two holders.
func Report(t testing.TB, what string, all []Overlap) (overlaps int) {
	if len(all) == 0 {
		return 0
	}
	worst, best := all[0].Apart, all[0].Apart
	var next []time.Duration
	for _, o := range all {
		if o.Apart < 0 {
			overlaps++
		}
		worst, best = min(worst, o.Apart), max(best, o.Apart)
		next = append(next, o.Next)
	}
	slices.Sort(next)
	t.Logf("%s: %d partitions, %d with two holders; from the end of the holder's Context to the next grant %v to %v; next grant after %v (median), at most %v",
		what, len(all), overlaps, worst.Round(time.Millisecond), best.Round(time.Millisecond),
		next[len(next)/2].Round(time.Millisecond), next[len(next)-1].Round(time.Millisecond))
	return overlaps
}

// delay lets the answers to one renewal, or to several, come late. A holder that counts
// from their arrival believes in its lock for longer than the server.
func delay(p *Proxy, ttl time.Duration) {
	p.Swallow(ToClient)
	time.Sleep(ttl / 2) // renewals come in thirds, and the holder must outlast it
	p.Heal()
	time.Sleep(10 * time.Millisecond) // for what was kept to arrive
}

func (s *suite) partitions(t *testing.T) {
	s.needLoss(t)
	if s.faults.Network == nil {
		t.Skip("SKIP: Faults.Network is missing")
	}
	var mu sync.Mutex
	var all []Overlap
	var wg sync.WaitGroup
	slots := make(chan bool, 10)
	for i := range s.faults.Partitions {
		wg.Go(func() {
			slots <- true
			defer func() { <-slots }()
			name := fmt.Sprintf("partition%d", i)
			l, p := s.faults.Network(t)
			var held locker.Held
			var ttl time.Duration
			cut := func() {
				if i%8 >= 2 { // most, since by far not every delay shows
					delay(p, ttl)
				}
				p.Swallow([]Direction{Both, ToServer, ToClient, Cut}[i%4])
			}
			o := Partition(t, cut, func() <-chan struct{} {
				h, err := l.Lock(bg(t), name, locker.Exclusive)
				if err != nil {
					t.Error(err)
					closed := make(chan struct{})
					close(closed)
					return closed
				}
				held = h
				until, _ := h.Valid()
				ttl = time.Until(until)
				return h.Context().Done()
			}, func() {
				h, err := s.new(t).Lock(bg(t), name, locker.Exclusive)
				if err != nil {
					t.Error(err)
					return
				}
				if held == nil {
					return
				}
				if first, ok := held.Token(); ok {
					if second, _ := h.Token(); second.N <= first.N {
						t.Errorf("token %v after %v", second, first)
					}
				}
				if until, _ := held.Valid(); time.Until(until) > 0 {
					t.Errorf("another one is granted the lock, and the holder's is valid until %v from now", time.Until(until))
				}
				if err := h.Unlock(bg(t)); err != nil {
					t.Error(err)
				}
			})
			if held == nil {
				return
			}
			if err := context.Cause(held.Context()); !errors.Is(err, locker.ErrLost) {
				t.Errorf("cause %v", err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			if err := held.Unlock(ctx); !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock: %v", err)
			}
			cancel()
			p.Heal()
			mu.Lock()
			all = append(all, o)
			mu.Unlock()
		})
	}
	wg.Wait()
	if n := Report(t, "partitions", all); n > 0 {
		t.Errorf("%d of %d partitions had two holders", n, len(all))
	}

	t.Run("while it waits", func(t *testing.T) {
		l, p := s.faults.Network(t)
		h := lock(t, s.new(t), "cutoff")
		errs := make(chan error)
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			h, err := l.Lock(ctx, "cutoff", locker.Exclusive)
			if err == nil {
				err = fmt.Errorf("it was granted %v", h)
			}
			errs <- err
		}()
		s.queued(t, "cutoff", 1)
		p.Swallow(Both)
		unlock(t, h)
		// The waiter cut off is next on the server. It must not stay so.
		begin := time.Now()
		s.free(t, "cutoff")
		t.Logf("a waiter that was cut off kept others out for %v", time.Since(begin))
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) && !errors.Is(err, locker.ErrLost) {
			t.Errorf("it ended with %v", err)
		}
		p.Heal()
	})

	t.Run("an unlock without an answer", func(t *testing.T) {
		l, p := s.faults.Network(t)
		h := lock(t, l, "unsure")
		p.Swallow(Both)
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		begin := time.Now()
		err := h.Unlock(ctx)
		if !errors.Is(err, locker.ErrUnsure) || errors.Is(err, locker.ErrLost) {
			t.Errorf("Unlock: %v", err)
		}
		if again := h.Unlock(bg(t)); again != err {
			t.Errorf("repeated: %v", again)
		}
		s.free(t, "unsure")
		t.Logf("%v; free after %v, Cleanup is %v", err, time.Since(begin), s.traits.Cleanup)
		p.Heal()
	})

	t.Run("shorter than the TTL", func(t *testing.T) {
		l, p := s.faults.Network(t)
		h := lock(t, l, "short")
		until, _ := h.Valid()
		ttl := time.Until(until)
		for range 3 {
			p.Swallow(Both)
			time.Sleep(ttl / 4)
			p.Heal()
			time.Sleep(ttl / 2)
		}
		if err := h.Context().Err(); err != nil {
			t.Errorf("lost in a short partition: %v", context.Cause(h.Context()))
		}
		unlock(t, h)
	})
}

// resets: connections break and can be made again at once. Some engines keep a lock
// over that, some lose it; none may say nil for a lock that was lost.
func (s *suite) resets(t *testing.T) {
	s.needLoss(t)
	if s.faults.Network == nil {
		t.Skip("SKIP: Faults.Network is missing")
	}
	l, p := s.faults.Network(t)
	kept, failed := 0, 0
	const n = 20
	for i := range n {
		h, err := l.Lock(bg(t), "reset", locker.Exclusive)
		if err != nil {
			if failed++; failed > n/2 {
				t.Fatalf("Lock after a reset: %v", err)
			}
			continue // an old connection, maybe
		}
		token, _ := h.Token()
		go p.Reset()
		time.Sleep(rand.N(3 * time.Millisecond))
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err = h.Unlock(ctx)
		cancel()
		if err == nil {
			kept++
		} else if !errors.Is(err, locker.ErrLost) && !errors.Is(err, locker.ErrUnsure) {
			t.Errorf("run %d: Unlock: %v", i, err)
		}
		// Free, at the latest after Cleanup, and with a later token.
		next := lock(t, s.new(t), "reset")
		if second, ok := next.Token(); ok && second.N <= token.N {
			t.Errorf("token %v after %v", second, token)
		}
		unlock(t, next)
	}
	t.Logf("of %d locks %d were kept, %d not granted", n, kept, failed)
}

func (s *suite) restarts(t *testing.T) {
	if s.faults.Restart == nil {
		t.Skip("SKIP: Faults.Restart is missing")
	}
	var last locker.Token
	for i := range 5 {
		var h locker.Held
		eventually(t, func() string {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			var err error
			if h, err = s.new(t).Lock(ctx, "restart", locker.Exclusive); err != nil {
				return err.Error()
			}
			return ""
		})
		token, ok := h.Token()
		if !ok || token.N <= last.N || i > 0 && token.Epoch != last.Epoch {
			t.Errorf("after crash %d: token %v after %v", i, token, last)
		}
		last = token
		s.faults.Restart(t)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := h.Unlock(ctx)
		cancel()
		t.Logf("token %v; Unlock after the crash: %v", token, err)
		if err != nil && !errors.Is(err, locker.ErrLost) && !errors.Is(err, locker.ErrUnsure) {
			t.Error(err)
		}
	}
}
