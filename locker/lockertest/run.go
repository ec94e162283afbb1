// Package lockertest is the conformance suite of package locker: what every Locker
// must do, on files or on a server, and what one on a server must do when the network,
// the server or the holder fails.
//
//	func TestMain(m *testing.M) { lockertest.Main(m, openForChild) }
//
//	func TestConformance(t *testing.T) {
//		lockertest.Run(t, newLocker, lockertest.Faults{ … })
//	}
package lockertest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
)

// patience is how long a test waits for what must happen. It is no measure of how
// fast that should be.
const patience = 30 * time.Second

// Faults are the ways to break what is below a Locker, and to look at it. A nil field
// leaves out, by name, the tests that need it.
type Faults struct {
	// Spec makes a Locker in a child process: it is handed to the function that
	// TestMain gives to Main. The tests with child processes need it.
	Spec string

	// Residue returns what the server stores for locks: keys, sessions that hold
	// or wait. Empty means that nothing is left.
	Residue func(t testing.TB) []string

	// Waiters returns how many calls wait for the lock of name.
	Waiters func(t testing.TB, name string) int

	// Break are ways, by name, to take the lock of name away from its holder on
	// the server: revoke, delete, terminate.
	Break map[string]func(t testing.TB, name string)

	// Network returns a Locker of its own behind a Proxy.
	Network func(t testing.TB) (locker.Locker, *Proxy)

	// Through returns a Proxy, and what Spec would be for one behind it.
	Through func(t testing.TB) (spec string, p *Proxy)

	// LongTTL returns a Locker with a TTL of 10 s or more.
	LongTTL func(t testing.TB) locker.Locker

	// KillFrees is how soon the lock of a killed process must be free. 0 means
	// Traits.Cleanup, and some time for a busy machine.
	KillFrees time.Duration

	// Restart ends the server as a crash does, and starts it again.
	Restart func(t testing.TB)

	// Partitions is how many partitions to inject; 0 means 8.
	Partitions int

	// Leaders is how many changes of leader to bring about; 0 means 6.
	Leaders int
}

type suite struct {
	new    func(t testing.TB) locker.Locker
	faults Faults
	traits locker.Traits
}

// Run tests the Lockers that newLocker returns, each of which is another client of the
// same engine. TTLs should be short: some tests wait for several.
func Run(t *testing.T, newLocker func(t testing.TB) locker.Locker, faults Faults) {
	if faults.Partitions == 0 {
		faults.Partitions = 8
	}
	s := &suite{new: newLocker, faults: faults, traits: newLocker(t).Traits()}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"excludes every other grant", s.excludes},
		{"a done ctx loses even when the lock is free", s.doneContext},
		{"ctx ends the wait", s.endOfWait},
		{"ctx governs the wait, not the lock", s.afterGrant},
		{"Unlock ends Context and repeats its answer", s.unlock},
		{"modes", s.modes},
		{"names are apart", s.names},
		{"names that cannot be locked", s.badNames},
		{"tokens rise", s.tokens},
		{"Do", s.do},
		{"deadlocks", s.deadlocks},
		{"first come, first served", s.fifo},
		{"200 waiters on one name", s.waiters},
		{"no goroutine is left", s.goroutines},
		{"600 cancellations leave nothing", s.cancellations},
		{"processes count under a lock", s.processes},
		{"a killed holder's lock is free", s.killedHolder},
		{"a frozen holder is fenced off", s.frozenHolder},
		{"what breaks a lock ends its Context", s.broken},
		{"partitions", s.partitions},
		{"resets", s.resets},
		{"one leader at a time", s.leaders},
		{"tokens rise over server crashes", s.restarts},
	} {
		t.Run(test.name, test.run)
	}
}

func bg(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func lock(t testing.TB, l locker.Locker, name string) locker.Held {
	t.Helper()
	h, err := l.Lock(bg(t), name, locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func unlock(t testing.TB, h locker.Held) {
	t.Helper()
	if err := h.Unlock(bg(t)); err != nil {
		t.Fatal(err)
	}
}

// free fails unless the lock of name can be had.
func (s *suite) free(t testing.TB, name string) {
	t.Helper()
	unlock(t, lock(t, s.new(t), name))
}

func (s *suite) busy(t testing.TB, l locker.Locker, name string, m locker.Mode) {
	t.Helper()
	h, err := l.TryLock(bg(t), name, m)
	if !errors.Is(err, flockctx.ErrLocked) {
		t.Fatalf("TryLock of a held lock: %v, %v", h, err)
	}
}

// queued waits until n calls wait for the lock of name.
func (s *suite) queued(t testing.TB, name string, n int) {
	t.Helper()
	if s.faults.Waiters == nil {
		time.Sleep(30 * time.Millisecond) // no way to see it
		return
	}
	eventually(t, func() string {
		if got := s.faults.Waiters(t, name); got != n {
			return fmt.Sprintf("%d wait for %q, not %d", got, name, n)
		}
		return ""
	})
}

// eventually waits until problem returns "".
func eventually(t testing.TB, problem func() string) {
	t.Helper()
	limit := time.Now().Add(patience)
	for {
		p := problem()
		if p == "" {
			return
		}
		if time.Now().After(limit) {
			t.Fatal(p)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *suite) excludes(t *testing.T) {
	a, b := s.new(t), s.new(t)
	h := lock(t, a, "excludes")
	s.busy(t, b, "excludes", locker.Exclusive)
	s.busy(t, a, "excludes", locker.Exclusive) // the same name twice in one Locker
	for _, l := range []locker.Locker{a, b} {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		if h, err := l.Lock(ctx, "excludes", locker.Exclusive); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Lock of a held lock: %v, %v", h, err)
		}
		cancel()
	}

	// Goroutines over two Lockers: a plain counter.
	unlock(t, h)
	var n int
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 10 {
				h, err := []locker.Locker{a, b}[i%2].Lock(bg(t), "excludes", locker.Exclusive)
				if err != nil {
					t.Error(err)
					return
				}
				v := n
				runtime.Gosched()
				n = v + 1
				if err := h.Unlock(bg(t)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n != 80 {
		t.Errorf("counted %d of 80", n)
	}

	h, err := b.TryLock(bg(t), "excludes", locker.Exclusive)
	if err != nil {
		t.Fatalf("TryLock of a free lock: %v", err)
	}
	unlock(t, h)
}

var errCause = errors.New("the cause")

func (s *suite) doneContext(t *testing.T) {
	l := s.new(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errCause)
	for _, f := range []func(context.Context, string, locker.Mode) (locker.Held, error){l.Lock, l.TryLock} {
		h, err := f(ctx, "done", locker.Exclusive)
		var be *flockctx.BusyError
		if h != nil || !errors.As(err, &be) || !errors.Is(err, context.Canceled) || !errors.Is(err, errCause) || be.Timeout() {
			t.Errorf("with a done ctx: %v, %v", h, err)
		}
	}
	s.free(t, "done")
}

func (s *suite) endOfWait(t *testing.T) {
	a, b := s.new(t), s.new(t)
	h := lock(t, a, "wait")
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := b.Lock(ctx, "wait", locker.Exclusive)
	var be *flockctx.BusyError
	if !errors.As(err, &be) || !be.Timeout() || be.Waited < 150*time.Millisecond || !strings.Contains(err.Error(), "wait") {
		t.Errorf("at the deadline: %v", err)
	}

	cctx, ccancel := context.WithCancelCause(context.Background())
	errs := make(chan error)
	go func() { _, err := b.Lock(cctx, "wait", locker.Exclusive); errs <- err }()
	s.queued(t, "wait", 1)
	ccancel(errCause)
	if err := <-errs; !errors.Is(err, context.Canceled) || !errors.Is(err, errCause) {
		t.Errorf("after a cancel: %v", err)
	}
	s.queued(t, "wait", 0)
	unlock(t, h)
	s.free(t, "wait")
}

func (s *suite) afterGrant(t *testing.T) {
	l := s.new(t)
	type key struct{}
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), key{}, "value"), patience)
	h, err := l.Lock(ctx, "after", locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	c := h.Context()
	if _, ok := c.Deadline(); c.Err() != nil || ok || c.Value(key{}) != "value" {
		t.Errorf("Context after the end of ctx: %v, deadline %v, value %v", c.Err(), ok, c.Value(key{}))
	}
	if s.traits.CanLose {
		// Long enough that the lock is lost unless it is renewed.
		begin, limit := time.Now(), time.After(patience)
		first, ok := h.Valid()
		if !ok || time.Until(first) <= 0 {
			t.Errorf("Valid: %v, %v", first, ok)
		}
		for until := first; time.Since(begin) < s.traits.Cleanup+time.Second; {
			if until, ok = h.Valid(); !ok || time.Until(until) <= 0 || c.Err() != nil {
				t.Fatalf("after %v: valid until %v, %v, %v", time.Since(begin), until, ok, context.Cause(c))
			}
			select {
			case <-limit:
				t.Fatal("too long")
			case <-time.After(100 * time.Millisecond):
			}
		}
	} else if _, ok := h.Valid(); ok {
		t.Error("Valid: a limit, where the lock cannot be lost")
	}
	s.busy(t, s.new(t), "after", locker.Exclusive)
	unlock(t, h)
}

func (s *suite) unlock(t *testing.T) {
	h := lock(t, s.new(t), "unlock")
	ended := make(chan error, 1)
	context.AfterFunc(h.Context(), func() { ended <- context.Cause(h.Context()) })
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := h.Unlock(bg(t)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := <-ended; !errors.Is(err, locker.ErrReleased) || errors.Is(err, locker.ErrLost) {
		t.Errorf("cause %v", err)
	}
	if h.Context().Err() == nil {
		t.Error("Context has not ended")
	}
	if until, ok := h.Valid(); ok && time.Until(until) > 0 {
		t.Errorf("valid until %v after Unlock", until)
	}
	other := lock(t, s.new(t), "unlock")
	if err := h.Unlock(bg(t)); err != nil {
		t.Errorf("repeated: %v", err)
	}
	s.busy(t, s.new(t), "unlock", locker.Exclusive) // the repeated Unlock did not free the other's
	unlock(t, other)

	// A ctx that is done keeps nobody from unlocking.
	h = lock(t, s.new(t), "unlock")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := h.Unlock(ctx); err != nil && !errors.Is(err, locker.ErrUnsure) {
		t.Errorf("with a done ctx: %v", err)
	}
	s.free(t, "unlock")
}

func (s *suite) modes(t *testing.T) {
	a, b := s.new(t), s.new(t)
	for _, f := range []func(context.Context, string, locker.Mode) (locker.Held, error){a.Lock, a.TryLock} {
		if _, err := f(bg(t), "modes", locker.Mode(7)); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Mode(7): %v", err)
		}
	}
	if !s.traits.Shared {
		for _, f := range []func(context.Context, string, locker.Mode) (locker.Held, error){a.Lock, a.TryLock} {
			if _, err := f(bg(t), "modes", locker.Shared); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("shared: %v", err)
			}
		}
		return
	}
	var held []locker.Held
	for _, l := range []locker.Locker{a, b, a} {
		h, err := l.TryLock(bg(t), "modes", locker.Shared)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := h.Token(); ok {
			t.Error("a shared lock has a token")
		}
		held = append(held, h)
	}
	for _, l := range []locker.Locker{a, b} {
		h, err := l.Lock(bg(t), "modes", locker.Shared)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, h)
	}
	s.busy(t, b, "modes", locker.Exclusive)

	// An exclusive one waits for all of them, and shared ones wait for it.
	type grant struct {
		h   locker.Held
		err error
	}
	granted := make(chan grant)
	wait := func(l locker.Locker, m locker.Mode) {
		go func() {
			h, err := l.Lock(bg(t), "modes", m)
			granted <- grant{h, err}
		}()
		s.queued(t, "modes", 1)
	}
	wait(b, locker.Exclusive)
	for _, h := range held {
		select {
		case g := <-granted:
			t.Fatalf("an exclusive lock beside a shared one: %v, %v", g.h, g.err)
		default:
		}
		unlock(t, h)
	}
	g := <-granted
	if g.err != nil {
		t.Fatal(g.err)
	}
	s.busy(t, a, "modes", locker.Shared)
	wait(a, locker.Shared)
	select {
	case g := <-granted:
		t.Fatalf("a shared lock beside an exclusive one: %v, %v", g.h, g.err)
	default:
	}
	unlock(t, g.h)
	if g = <-granted; g.err != nil {
		t.Fatal(g.err)
	}
	if _, ok := g.h.Token(); ok {
		t.Error("a shared lock has a token")
	}
	unlock(t, g.h)
}

func (s *suite) names(t *testing.T) {
	names := []string{
		"a", "A", "a/b", "a/", "/a", "..", ".", "../a", "a.", "a ", " a", "a%2Fb", "%", "%61", "a\x00", "a\n", "\xff",
		"ä", "a\u0308", "con", "a\\b", "*", "名前", "'; drop table x; --",
		strings.Repeat("x", 300), strings.Repeat("x", 301), strings.Repeat("/", 300), strings.Repeat("y", locker.MaxName),
	}
	l := s.new(t)
	for _, name := range names {
		h, err := l.TryLock(bg(t), name, locker.Exclusive)
		if err != nil {
			t.Fatalf("%.20q: %v", name, err) // also where another name took its lock
		}
		s.busy(t, l, name, locker.Exclusive)
		defer unlock(t, h)
	}
}

func (s *suite) badNames(t *testing.T) {
	l := s.new(t)
	for _, name := range []string{"", strings.Repeat("x", locker.MaxName+1)} {
		for _, f := range []func(context.Context, string, locker.Mode) (locker.Held, error){l.Lock, l.TryLock} {
			_, err := f(bg(t), name, locker.Exclusive)
			if err == nil || !strings.Contains(err.Error(), "name") || len(err.Error()) > 300 {
				t.Errorf("a name of %d bytes: %v", len(name), err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_, err = f(ctx, name, locker.Exclusive)
			if be, ok := errors.AsType[*flockctx.BusyError](err); !ok || !errors.Is(be, context.Canceled) || len(err.Error()) > 600 {
				t.Errorf("a name of %d bytes with a done ctx: %v", len(name), err)
			}
		}
	}
}

func (s *suite) tokens(t *testing.T) {
	a, b := s.new(t), s.new(t)
	var last locker.Token
	for i := range 6 {
		h := lock(t, []locker.Locker{a, b}[i%2], "tokens")
		token, ok := h.Token()
		unlock(t, h)
		if ok != s.traits.Fenced {
			t.Fatalf("token: %v", ok)
		}
		if ok && (token.N <= last.N || token.Epoch == "" || i > 0 && token.Epoch != last.Epoch) {
			t.Errorf("token %v after %v", token, last)
		}
		last = token
	}
}

func (s *suite) do(t *testing.T) {
	l := s.new(t)
	errFn := errors.New("fn's")
	type key struct{}
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), key{}, 1), patience)
	defer cancel()
	err := locker.Do(ctx, l, "do", locker.Exclusive, func(c context.Context) error {
		s.busy(t, l, "do", locker.Exclusive)
		d, ok := c.Deadline()
		if d2, _ := ctx.Deadline(); !ok || !d.Equal(d2) || c.Value(key{}) != 1 || c.Err() != nil {
			t.Errorf("fn's context: deadline %v, value %v, %v", ok, c.Value(key{}), c.Err())
		}
		return errFn
	})
	if err != errFn {
		t.Errorf("Do: %v", err)
	}

	func() {
		defer func() {
			if recover() != "fn's" {
				t.Error("the panic did not come through")
			}
		}()
		locker.Do(ctx, l, "do", locker.Exclusive, func(context.Context) error { panic("fn's") })
	}()
	s.free(t, "do")

	cctx, ccancel := context.WithCancelCause(ctx)
	err = locker.Do(cctx, l, "do", locker.Exclusive, func(c context.Context) error {
		ccancel(errCause)
		<-c.Done()
		if context.Cause(c) != errCause {
			t.Errorf("cause %v", context.Cause(c))
		}
		return nil
	})
	if err != nil {
		t.Errorf("Do of a fn that succeeded: %v", err)
	}

	h := lock(t, l, "do")
	tctx, tcancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer tcancel()
	err = locker.Do(tctx, l, "do", locker.Exclusive, func(context.Context) error {
		t.Error("fn was called without the lock")
		return nil
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Do of a held lock: %v", err)
	}
	unlock(t, h)
}

// deadlocks: locks under locks, by Do.
func (s *suite) deadlocks(t *testing.T) {
	if !s.traits.Deadlocks {
		t.Skip("SKIP: not a trait of this engine")
	}
	l := s.new(t)
	nest := func(outer, inner string, meet func()) error {
		return locker.Do(bg(t), l, outer, locker.Exclusive, func(ctx context.Context) error {
			meet()
			return locker.Do(ctx, l, inner, locker.Exclusive, func(context.Context) error { return nil })
		})
	}
	begin := time.Now()
	if err := nest("deadlock a", "deadlock a", func() {}); !errors.Is(err, locker.ErrDeadlock) {
		t.Errorf("a name under itself: %v", err)
	}
	t.Logf("found after %v", time.Since(begin))

	// By the context of a Held.
	h := lock(t, l, "deadlock a")
	if _, err := l.Lock(h.Context(), "deadlock a", locker.Exclusive); !errors.Is(err, locker.ErrDeadlock) {
		t.Errorf("a name under itself, by Held.Context: %v", err)
	}
	unlock(t, h)

	// Over a lock of another Locker.
	other := s.new(t)
	err := locker.Do(bg(t), l, "deadlock a", locker.Exclusive, func(ctx context.Context) error {
		return locker.Do(ctx, other, "deadlock b", locker.Exclusive, func(ctx context.Context) error {
			return locker.Do(ctx, l, "deadlock a", locker.Exclusive, func(context.Context) error { return nil })
		})
	})
	if !errors.Is(err, locker.ErrDeadlock) {
		t.Errorf("a name under itself, over another Locker: %v", err)
	}

	// Two that meet, and one between them that holds another lock in between.
	names := []string{"deadlock a", "deadlock b", "deadlock c"}
	for n := 2; n <= 3; n++ {
		var met, done sync.WaitGroup
		met.Add(n)
		errs := make(chan error, n)
		for i := range n {
			done.Go(func() {
				errs <- nest(names[i], names[(i+1)%n], func() { met.Done(); met.Wait() })
			})
		}
		done.Wait()
		close(errs)
		found := 0
		for err := range errs {
			if errors.Is(err, locker.ErrDeadlock) {
				found++
			} else if err != nil {
				t.Error(err)
			}
		}
		t.Logf("in a circle of %d, %d were told", n, found)
		if found == 0 {
			t.Errorf("a circle of %d was not found", n)
		}
	}

	// No circle, only a wait: it must not be taken for one.
	h = lock(t, s.new(t), "deadlock b")
	errs := make(chan error)
	go func() { errs <- nest("deadlock a", "deadlock b", func() {}) }()
	s.queued(t, "deadlock b", 1)
	time.Sleep(1500 * time.Millisecond)
	unlock(t, h)
	if err := <-errs; err != nil {
		t.Errorf("a wait that is no deadlock: %v", err)
	}
}

func (s *suite) fifo(t *testing.T) {
	if !s.traits.FIFO {
		t.Skip("SKIP: not a trait of this engine")
	}
	if s.faults.Waiters == nil {
		t.Skip("SKIP: Faults.Waiters is missing")
	}
	a, b := s.new(t), s.new(t)
	h := lock(t, a, "fifo")
	const n = 10
	order := make(chan int, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			h, err := []locker.Locker{a, b}[i%2].Lock(bg(t), "fifo", locker.Exclusive)
			if err != nil {
				t.Error(err)
				return
			}
			order <- i
			if err := h.Unlock(bg(t)); err != nil {
				t.Error(err)
			}
		})
		s.queued(t, "fifo", i+1)
	}
	s.busy(t, b, "fifo", locker.Exclusive)
	unlock(t, h)
	wg.Wait()
	close(order)
	want := 0
	for i := range order {
		if i != want {
			t.Fatalf("waiter %d came when it was the turn of %d", i, want)
		}
		want++
	}
}

// goroutines looks for those that were started by calls that are over. They are known
// by a label, which goroutines inherit: other tests may run at the same time.
func (s *suite) goroutines(t *testing.T) {
	l := s.new(t)
	unlock(t, lock(t, l, "goroutines")) // what a client starts once
	label := fmt.Sprintf("%p", t)
	pprof.Do(context.Background(), pprof.Labels("lockertest", label), func(context.Context) {
		for range 20 {
			h := lock(t, l, "goroutines")
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Millisecond)
			l.Lock(ctx, "goroutines", locker.Exclusive)
			cancel()
			l.TryLock(context.Background(), "goroutines", locker.Exclusive)
			unlock(t, h)
		}
	})
	eventually(t, func() string {
		var all strings.Builder
		pprof.Lookup("goroutine").WriteTo(&all, 1)
		for _, stack := range strings.Split(all.String(), "\n\n") {
			if strings.Contains(stack, label) {
				return "left behind: " + stack
			}
		}
		return ""
	})
}
