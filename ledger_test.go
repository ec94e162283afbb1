package flockctx_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

// Random calls of all kinds, whose events are held against what can be true, and against
// what the calls returned.

// A ledger is a tracer that keeps accounts.
type ledger struct {
	t      testing.TB
	moving string       // a file that is removed and replaced, so that two can hold "it"
	panics atomic.Int64 // of hooks

	mu       sync.Mutex
	accounts map[*flockctx.Flock]*account
	holders  map[string]map[*flockctx.Flock]flockctx.Mode
}

// An account is of one handle.
type account struct {
	held           bool
	closed         bool // by one of the calls here
	lost           int  // by Convert
	told, returned counts
}

type counts struct{ granted, failed, released int }

func newLedger(t testing.TB, moving string) *ledger {
	return &ledger{t: t, moving: moving, accounts: map[*flockctx.Flock]*account{}, holders: map[string]map[*flockctx.Flock]flockctx.Mode{}}
}

// of calls fn with the account of l.
func (g *ledger) of(l *flockctx.Flock, fn func(*account)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.accounts[l]
	if a == nil {
		a = &account{}
		g.accounts[l] = a
	}
	fn(a)
}

// A receipt is what one call with a context was told.
type receipt struct {
	panicAt string // the hook that is to panic

	mu                       sync.Mutex
	waiting, granted, failed int
	process                  int   // grants and failures that the tracer of the process was told
	err                      error // of the last failure
}

type receiptKey struct{}

// note changes the receipt of the call that ctx is of, if it has one, and panics if it is
// to.
func (g *ledger) note(ctx context.Context, hook string, fn func(*receipt)) {
	r, _ := ctx.Value(receiptKey{}).(*receipt)
	if r == nil {
		return
	}
	r.mu.Lock()
	fn(r)
	r.mu.Unlock()
	if hook != "" && r.panicAt == hook {
		g.panics.Add(1)
		panic(errHook)
	}
}

// tracer returns that of the handles.
func (g *ledger) tracer() *flockctx.Tracer {
	return &flockctx.Tracer{
		Waiting: func(ctx context.Context, e flockctx.Event) context.Context {
			g.note(ctx, "waiting", func(r *receipt) { r.waiting++ })
			return context.WithValue(ctx, toldWaiting{}, true)
		},
		Acquired: func(ctx context.Context, e flockctx.Event) {
			g.acquired(e)
			g.note(ctx, "acquired", func(r *receipt) { r.granted++ })
		},
		Failed: func(ctx context.Context, e flockctx.Event) {
			if e.Err == nil {
				g.t.Errorf("failed without an error: %+v", e)
			}
			g.of(e.Flock, func(a *account) { a.told.failed++ })
			g.note(ctx, "failed", func(r *receipt) {
				r.failed++
				r.err = e.Err
				if waited, _ := ctx.Value(toldWaiting{}).(bool); waited != (e.Waited > 0) && r.panicAt != "waiting" {
					g.t.Errorf("%v waited %v, told of that: %v", e.Err, e.Waited, waited)
				}
			})
		},
		Released: func(e flockctx.Event) {
			g.released(e)
			if rand.IntN(20) == 0 {
				g.panics.Add(1)
				panic(errHook)
			}
		},
	}
}

type toldWaiting struct{}

func (g *ledger) acquired(e flockctx.Event) {
	g.of(e.Flock, func(a *account) {
		if a.held != (e.Op == "convert") {
			g.t.Errorf("%s of %s granted, held before: %v", e.Op, e.Path, a.held)
		}
		a.held = true
		if e.Op == "lock" {
			a.told.granted++
		}
		holders := g.holders[e.Path]
		if holders == nil {
			holders = map[*flockctx.Flock]flockctx.Mode{}
			g.holders[e.Path] = holders
		}
		holders[e.Flock] = e.Mode
		for l, m := range holders {
			if l != e.Flock && (m == flockctx.Exclusive || e.Mode == flockctx.Exclusive) && e.Path != g.moving {
				g.t.Errorf("%s of %s granted (%v) beside a holder (%v)", e.Op, e.Path, e.Mode, m)
			}
		}
	})
}

func (g *ledger) released(e flockctx.Event) {
	g.of(e.Flock, func(a *account) {
		if !a.held || e.Held <= 0 {
			g.t.Errorf("%s of %s released, held before: %v, for %v", e.Op, e.Path, a.held, e.Held)
		}
		if m := g.holders[e.Path][e.Flock]; m != e.Mode {
			g.t.Errorf("%s of %s released in mode %v, held in %v", e.Op, e.Path, e.Mode, m)
		}
		a.held = false
		a.told.released++
		if e.Op == "convert" {
			a.lost++
		}
		delete(g.holders[e.Path], e.Flock)
	})
}

// processTracer only counts, and does now and then what hooks may.
func (g *ledger) processTracer(dir string) *flockctx.Tracer {
	note := func(ctx context.Context, e flockctx.Event) {
		g.note(ctx, "", func(r *receipt) { r.process++ })
		switch rand.IntN(300) {
		case 0:
			flockctx.Snapshot()
		case 1:
			e.Holders()
		case 2:
			if l, err := flockctx.TryLock(filepath.Join(dir, "of a hook"), nil); err == nil {
				l.Close()
			}
		}
	}
	return &flockctx.Tracer{Acquired: note, Failed: note}
}

// A fickleContext panics when it is asked for the nth time.
type fickleContext struct {
	context.Context
	left *atomic.Int64
}

var errFickle = errors.New("a context panics")

func (c fickleContext) ask() {
	if c.left.Add(-1) == 0 {
		panic(errFickle)
	}
}

func (c fickleContext) Err() error                  { c.ask(); return c.Context.Err() }
func (c fickleContext) Done() <-chan struct{}       { c.ask(); return c.Context.Done() }
func (c fickleContext) Deadline() (time.Time, bool) { c.ask(); return c.Context.Deadline() }

// call makes a call with a context of some kind, and holds its receipt against what it
// returns. It reports whether the call returned nil, and what it was told.
func (g *ledger) call(op string, fn func(context.Context) error) (ok bool, r *receipt) {
	r = &receipt{}
	if rand.IntN(8) == 0 {
		r.panicAt = []string{"waiting", "acquired", "failed"}[rand.IntN(3)]
	}
	ctx, cancel := context.WithTimeoutCause(context.WithValue(context.Background(), receiptKey{}, r),
		time.Duration(rand.IntN(3000))*time.Microsecond, errors.New("the cause"))
	defer cancel()
	switch rand.IntN(8) {
	case 0:
		cancel()
	case 1:
		fickle := fickleContext{ctx, new(atomic.Int64)}
		fickle.left.Store(1 + rand.Int64N(6))
		ctx = fickle
	}
	var err error
	p := recovered(func() { err = fn(ctx) })
	r.mu.Lock()
	defer r.mu.Unlock()
	bad := ""
	switch {
	case op == "lock all": // which may begin anew, and tells of each file
		if err != nil && p == nil && (r.failed == 0 || r.err != err) {
			bad = "its failure is not told"
		}
	case p != nil && r.granted == 1 && r.failed == 0 && (r.panicAt == "acquired" || op == "convert" || op == "do"):
		// A conversion stays, whatever panics; and Do has to release.
	case p != nil && (r.granted != 0 || r.failed > 1 || r.failed == 0 && p == errHook):
		bad = "it panicked"
	case p == nil && err != nil && (r.granted != 0 || r.failed != 1 || r.err != err):
		bad = "it failed"
	case p == nil && err == nil && (r.failed != 0 || r.granted != 1 && op != "convert" || r.granted > 1):
		bad = "it succeeded"
	}
	if r.waiting > 1 && op != "lock all" {
		bad = "it began to wait more than once"
	}
	if r.process != r.granted+r.failed {
		bad = "the tracer of the process was told another number"
	}
	if bad != "" {
		g.t.Errorf("%s: %s: error %v, panic %v, receipt %+v", op, bad, err, p, r)
	}
	return err == nil && p == nil, r
}

// A slot has a handle that goroutines share, until one closes it and puts in a new one.
type slot struct {
	path    string
	options flockctx.Options
	handle  atomic.Pointer[flockctx.Flock]
}

// step makes a random call.
func (g *ledger) step(slots []*slot, lost *atomic.Int64) {
	s := slots[rand.IntN(len(slots))]
	l := s.handle.Load()
	returned := func(granted, failed, released int) {
		g.of(l, func(a *account) {
			a.returned.granted += granted
			a.returned.failed += failed
			a.returned.released += released
		})
	}
	mode := flockctx.Mode(rand.IntN(2))
	isLost := func(err error) bool { return err != nil && strings.Contains(err.Error(), "the lock is lost") }
	switch op := rand.IntN(16); op {
	case 0, 1, 2:
		_, r := g.call("lock", l.Lock)
		returned(r.granted, r.failed, 0)
		if r.granted == 1 && r.panicAt == "acquired" {
			returned(0, 0, 1) // given back at once
		}
	case 3, 4:
		if l.TryLock() == nil {
			returned(1, 0, 0)
		} else {
			returned(0, 1, 0)
		}
	case 5, 6, 7:
		var err error
		if p := recovered(func() { err = l.Unlock() }); p != nil || err == nil {
			returned(0, 0, 1)
		}
	case 8, 9:
		var err error
		_, r := g.call("convert", func(ctx context.Context) error {
			err = l.Convert(ctx, mode)
			return err
		})
		returned(0, r.failed, 0)
		if isLost(err) {
			lost.Add(1)
		}
	case 10:
		var err error
		if p := recovered(func() { err = l.TryConvert(mode) }); p != nil || err != nil {
			returned(0, 1, 0)
			if isLost(err) {
				lost.Add(1)
			}
		}
	case 11:
		fresh := flockctx.New(s.path, &s.options)
		if s.handle.CompareAndSwap(l, fresh) {
			g.close(l)
		}
	case 12:
		var set *flockctx.Set
		ok, _ := g.call("lock all", func(ctx context.Context) (err error) {
			set, err = flockctx.LockAll(ctx, []string{slots[0].path, g.moving}, &flockctx.Options{Mode: mode, Tracer: s.options.Tracer})
			return err
		})
		if ok {
			recovered(func() { set.Close() })
		}
	case 13:
		if f, err := os.Open(slots[0].path); err == nil {
			g.call("lock", func(ctx context.Context) error {
				l, err := flockctx.LockFile(ctx, f, &flockctx.Options{Mode: mode, Tracer: s.options.Tracer})
				if err == nil {
					recovered(func() { l.Close() })
				}
				return err
			})
			f.Close()
		}
	case 14:
		g.call("do", func(ctx context.Context) error {
			return flockctx.Do(ctx, s.path, &s.options, func(*flockctx.Flock) error { return nil })
		})
	case 15:
		os.Remove(g.moving)
	}
}

// close closes l, by whatever goroutine holds it: nothing of it remains.
func (g *ledger) close(l *flockctx.Flock) {
	recovered(func() { l.Close() })
	g.of(l, func(a *account) {
		a.closed = true
		if a.held {
			g.t.Error("a closed handle holds its lock, its tracer says")
		}
	})
}

func TestWhatIsToldIsWhatTheCallsReturned(t *testing.T) {
	duration := 3 * time.Second
	if testing.Short() {
		duration = time.Second
	}
	dir := t.TempDir()
	a, b, moving := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "moving")
	g := newLedger(t, moving)
	setTracer(t, g.processTracer(dir))
	var slots []*slot
	add := func(path string, o flockctx.Options) {
		o.Tracer = g.tracer()
		s := &slot{path: path, options: o}
		s.handle.Store(flockctx.New(path, &s.options))
		slots = append(slots, s)
	}
	mechanism := mechanisms()[len(mechanisms())-1]
	for _, m := range []flockctx.Mode{flockctx.Exclusive, flockctx.Shared} {
		add(a, flockctx.Options{Mode: m})
		add(a, flockctx.Options{Mode: m, Wait: flockctx.WaitPoll})
		add(b, flockctx.Options{Mode: m, Mechanism: mechanism})
		add(moving, flockctx.Options{Mode: m, Remove: true})
	}

	// Another process comes in between, so that flock(2) loses conversions.
	rival := startAgent(t, a, flockctx.Options{Mode: flockctx.Shared})
	var workers, rivals sync.WaitGroup
	stop := make(chan struct{})
	rivals.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if rival.do("trylock") == "ok" {
					rival.must("unlock")
				}
			}
		}
	})
	var lost atomic.Int64
	end := time.Now().Add(duration)
	for range 8 {
		workers.Go(func() {
			for time.Now().Before(end) && !t.Failed() {
				g.step(slots, &lost)
			}
		})
	}
	workers.Wait()
	close(stop)
	rivals.Wait()
	for _, s := range slots {
		g.close(s.handle.Load())
	}

	g.mu.Lock()
	var sum counts
	toldLost := 0
	for l, a := range g.accounts {
		if a.held || a.told.granted != a.told.released {
			t.Errorf("%s: at the end held is %v, told %+v", l.Name(), a.held, a.told)
		}
		sum.granted += a.told.granted
		sum.failed += a.told.failed
		toldLost += a.lost
		if !a.closed {
			continue // of a call that made the handle itself
		}
		byClose := a.told.released - a.returned.released - a.lost
		if a.told.granted != a.returned.granted || a.told.failed != a.returned.failed || byClose != 0 && byClose != 1 {
			t.Errorf("%s: told %+v, returned %+v", l.Name(), a.told, a.returned)
		}
	}
	g.mu.Unlock()
	if n := int(lost.Load()); toldLost < n { // where a hook panicked no error says so
		t.Errorf("%d locks lost by Convert were told, %d returned", toldLost, n)
	}
	t.Logf("%d granted, %d failed, %d lost by Convert, %d hooks panicked", sum.granted, sum.failed, lost.Load(), g.panics.Load())
	if sum.granted == 0 || sum.failed == 0 || g.panics.Load() == 0 {
		t.Error("not all of it happened")
	}
	setTracer(t, nil)
	for _, path := range []string{a, b, moving} {
		wantFree(t, path, flockctx.Options{Mechanism: flockctx.BSD})
		wantFree(t, path, flockctx.Options{Mechanism: mechanism})
	}
}
