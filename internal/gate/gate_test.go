// In package gate, since the model looks at the gate's fields after each step.

package gate

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The gate against a simple reference, in the exact time of a bubble: after each
// step every goroutine has come to rest, and what holds of a fair reader-writer lock
// must hold of the gate.

// A gateModel is a gate, its actors, and what they were seen to do.
type gateModel struct {
	t      testing.TB
	mu     sync.Mutex
	g      Gate
	actors []*gateActor
	seq    int           // arrivals
	handed time.Duration // when somebody last came in from the queue
	start  time.Time
	log    []string
}

type gateActor struct {
	id     int
	state  gateState
	mode   Mode
	seq    int // when it came, among all
	since  time.Duration
	cancel context.CancelFunc
	closed chan struct{}
	result error // of the call that the actor is in
	ended  bool  // that call has returned
}

type gateState int

const (
	outside gateState = iota
	waiting
	inside
	upgrading // inside, shared, to be alone
)

func newGateModel(t testing.TB, actors int) *gateModel {
	m := &gateModel{t: t, start: time.Now(), handed: -time.Hour}
	m.g.Init(&m.mu, 0)
	for i := range actors {
		m.actors = append(m.actors, &gateActor{id: i})
	}
	return m
}

func (m *gateModel) now() time.Duration { return time.Since(m.start) }

func (m *gateModel) fail(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("%s\nafter %v", fmt.Sprintf(format, args...), m.log)
}

// A gateOp is a thing that an actor can do.
type gateOp int

const (
	opLockExclusive gateOp = iota
	opLockShared
	opTryExclusive
	opTryShared
	opLeave
	opCancel
	opClose
	opUpgrade
	opDowngrade
	opPass // some time
	gateOps
)

var gateOpNames = [...]string{"lock exclusive", "lock shared", "try exclusive", "try shared", "unlock", "cancel", "close", "upgrade", "downgrade", "time"}

// can reports whether actor a can do op now.
func (m *gateModel) can(a *gateActor, op gateOp) bool {
	switch op {
	case opLockExclusive, opLockShared, opTryExclusive, opTryShared:
		return a.state == outside
	case opLeave:
		return a.state == inside
	case opCancel, opClose:
		return a.state == waiting || a.state == upgrading
	case opUpgrade:
		return a.state == inside && a.mode == Reader
	case opDowngrade:
		return a.state == inside && a.mode == Writer
	}
	return true
}

// step has actor a do op, waits until all rest, and checks everything.
func (m *gateModel) step(a *gateActor, op gateOp, d time.Duration) {
	m.t.Helper()
	if op == opPass {
		m.log = append(m.log, d.String())
		time.Sleep(d)
		m.settle(nil)
		// Whoever may get in has done so by then: being overtaken, a slice and
		// every timer are over.
		m.mu.Lock()
		h := m.g.head
		forgotten := h != nil && d > time.Millisecond && m.g.admits(h.mode)
		m.mu.Unlock()
		if forgotten {
			m.fail("the first waiter was forgotten")
		}
		return
	}
	m.log = append(m.log, fmt.Sprint(a.id, " ", gateOpNames[op]))
	arrived := (*gateActor)(nil)
	switch op {
	case opLockExclusive, opLockShared:
		m.seq++
		a.state, a.mode, a.seq, a.since = waiting, Writer, m.seq, m.now()
		if op == opLockShared {
			a.mode = Reader
		}
		arrived = a
		m.call(a, func(ctx context.Context, closed <-chan struct{}) error {
			m.mu.Lock()
			return m.g.Enter(ctx.Done(), closed, a.mode, nil)
		})
	case opTryExclusive, opTryShared:
		a.mode = Writer
		if op == opTryShared {
			a.mode = Reader
		}
		m.mu.Lock()
		if m.g.TryEnter(a.mode) {
			a.state = inside
			arrived = a
		}
		m.mu.Unlock()
	case opLeave:
		a.state = outside
		m.mu.Lock()
		m.g.Leave(a.mode)
		m.mu.Unlock()
	case opCancel:
		a.cancel()
	case opClose:
		close(a.closed)
	case opUpgrade:
		a.state = upgrading
		m.call(a, func(ctx context.Context, closed <-chan struct{}) error {
			m.mu.Lock()
			return m.g.BeAlone(ctx.Done(), closed)
		})
	case opDowngrade:
		a.mode = Reader
		m.mu.Lock()
		m.g.Share()
		m.mu.Unlock()
	}
	m.settle(arrived)
}

func (m *gateModel) call(a *gateActor, fn func(context.Context, <-chan struct{}) error) {
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel, a.closed, a.ended = cancel, make(chan struct{}), false
	go func() {
		a.result = fn(ctx, a.closed)
		a.ended = true
	}()
}

// settle waits until all rest, and compares the gate with what is allowed.
func (m *gateModel) settle(arrived *gateActor) {
	m.t.Helper()
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	var came []*gateActor
	for _, a := range m.actors {
		if (a.state != waiting && a.state != upgrading) || !a.ended {
			continue
		}
		a.cancel()
		switch {
		case a.state == upgrading && a.result == nil:
			a.state, a.mode = inside, Writer
		case a.state == upgrading:
			a.state = inside
		case a.result == nil:
			a.state = inside
			came = append(came, a)
		default:
			a.state = outside
		}
	}

	// Exclusion, and the gate's own count.
	writers, readers, upgrades := 0, 0, 0
	for _, a := range m.actors {
		switch {
		case a.state == upgrading:
			upgrades++
			readers++
		case a.state == inside && a.mode == Writer:
			writers++
		case a.state == inside:
			readers++
		}
	}
	if writers > 1 || writers == 1 && readers > 0 {
		m.fail("%d writers and %d readers are inside", writers, readers)
	}
	if m.g.writer != (writers == 1) || m.g.readers != readers || (m.g.upgrade != nil) != (upgrades > 0) || upgrades > 1 {
		m.fail("the gate counts writer %v, %d readers, upgrade %v; inside are %d, %d, %d", m.g.writer, m.g.readers, m.g.upgrade != nil, writers, readers, upgrades)
	}

	// The queue is in order, and holds who waits.
	n := 0
	for w := m.g.head; w != nil; w = w.next {
		if n++; w.next != nil && w.next.prev != w || w.next == nil && m.g.tail != w {
			m.fail("the list is broken")
		}
	}
	for _, a := range m.actors {
		if a.state == waiting {
			n--
		}
	}
	if n != 0 {
		m.fail("the list has %d more than wait", n)
	}

	// First come, first served: who came in from the queue left nobody behind
	// that had come before.
	for _, in := range came {
		if in == arrived {
			continue // at once
		}
		m.handed = now
		for _, a := range m.actors {
			if a.state == waiting && a.seq < in.seq {
				m.fail("%d, which came as number %d, got in before %d, number %d", in.id, in.seq, a.id, a.seq)
			}
		}
	}
	// Nobody overtakes one that has waited for 1 ms, except in a slice.
	if arrived != nil && arrived.state == inside && now-m.handed >= time.Millisecond {
		for _, a := range m.actors {
			if a.state == waiting && now-a.since >= time.Millisecond+time.Microsecond {
				m.fail("%d overtook %d, which has waited for %v", arrived.id, a.id, now-a.since)
			}
		}
	}
}

// finish lets everybody leave, and fails if somebody never gets in, or the gate does
// not end as it began.
func (m *gateModel) finish() {
	m.t.Helper()
	for range 4 * (len(m.actors) + 1) {
		done := true
		for _, a := range m.actors {
			if a.state == inside {
				m.step(a, opLeave, 0)
			}
			done = done && a.state == outside
		}
		if done {
			break
		}
		m.step(nil, opPass, 3*time.Millisecond)
	}
	for _, a := range m.actors {
		if a.state != outside {
			m.fail("%d never got in", a.id)
		}
	}
	if g := &m.g; g.writer || g.readers != 0 || g.closed || g.upgrade != nil || g.head != nil || g.tail != nil {
		m.fail("the gate is not as it was: %+v", g)
	}
}

// play interprets data as steps.
func playGate(t testing.TB, data []byte) {
	m := newGateModel(t, 5)
	times := []time.Duration{0, 10 * time.Microsecond, 60 * time.Microsecond, 250 * time.Microsecond, 999 * time.Microsecond, time.Millisecond, 1300 * time.Microsecond}
	for _, b := range data {
		op := gateOp(b) % gateOps
		a := m.actors[int(b/byte(gateOps))%len(m.actors)]
		if m.can(a, op) {
			m.step(a, op, times[int(b)/int(gateOps)%len(times)])
		}
	}
	m.finish()
}

// Random operations.
func TestGateModel(t *testing.T) {
	runs := 3000
	if testing.Short() {
		runs = 300
	}
	for range runs {
		data := make([]byte, 60)
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		synctest.Test(t, func(t *testing.T) { playGate(t, data) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// Some 10,000 inputs a second with
//
//	go test -run '^$' -fuzz FuzzGate -fuzzminimizetime 10x .
//
// and mostly none without that limit: goroutines run in an order of their own, so of
// one input the coverage differs from run to run, and Go tries for a minute to make
// each input smaller that it finds interesting, during which it counts none.
func FuzzGate(f *testing.F) {
	f.Add([]byte{0, 10, 20, 4, 9, 14, 24})
	f.Add(bytes.Repeat([]byte{1, 11, 7, 4, 99, 20, 5}, 3))
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) { playGate(t, data[:min(len(data), 500)]) })
	})
}

// All sequences of some steps of 3 actors.
func TestGateSmallSequences(t *testing.T) {
	const actors = 3
	depth := 5
	if testing.Short() {
		depth = 4
	}
	type move struct {
		actor int
		op    gateOp
	}
	var moves []move
	for op := range gateOps {
		for a := range actors {
			if op == opPass && a > 0 || op == opClose { // which the gate takes as cancel
				continue
			}
			moves = append(moves, move{a, op})
		}
	}
	sequences := 0
	// The actors are alike: the first to move is 0, the next new one is 1.
	var explore func(t *testing.T, prefix []move, used int)
	explore = func(t *testing.T, prefix []move, used int) {
		m := newGateModel(t, actors)
		for _, mv := range prefix {
			m.step(m.actors[mv.actor], mv.op, 1100*time.Microsecond)
		}
		var next []move
		for _, mv := range moves {
			if mv.actor <= used && m.can(m.actors[mv.actor], mv.op) &&
				(mv.op != opPass || len(prefix) > 0 && prefix[len(prefix)-1].op != opPass) {
				next = append(next, mv)
			}
		}
		m.finish()
		sequences++
		if len(prefix) == depth {
			return
		}
		for _, mv := range next {
			u := used
			if mv.op != opPass && mv.actor == used && used < actors-1 {
				u++
			}
			explore(t, append(prefix[:len(prefix):len(prefix)], mv), u)
		}
	}
	synctest.Test(t, func(t *testing.T) { explore(t, nil, 0) })
	t.Logf("%d sequences", sequences)
}

// Goroutines in their own time: exclusion holds, everyone gets in, and the longest
// wait has a bound although others come back without a break.
func TestGateUnderLoad(t *testing.T) {
	var mu sync.Mutex
	var g Gate
	g.Init(&mu, 0)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var inside, readers int // guarded by the gate for writers, by mu2 for readers
	var mu2 sync.Mutex
	hold := func(m Mode) {
		mu2.Lock()
		if m == Writer {
			inside++
		} else {
			readers++
		}
		if inside > 1 || inside == 1 && readers > 0 {
			t.Errorf("%d writers and %d readers", inside, readers)
		}
		mu2.Unlock()
		for end := time.Now().Add(5 * time.Microsecond); time.Now().Before(end); {
		}
		mu2.Lock()
		if m == Writer {
			inside--
		} else {
			readers--
		}
		mu2.Unlock()
	}
	var longest time.Duration
	for i := range 24 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 0))
			for {
				select {
				case <-stop:
					return
				default:
				}
				m := Mode(r.IntN(3) / 2) // two in three exclusive
				ctx, cancel := context.Background(), context.CancelFunc(func() {})
				if r.IntN(4) == 0 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(3000))*time.Microsecond)
				}
				began := time.Now()
				mu.Lock()
				err := g.Enter(ctx.Done(), nil, m, nil)
				took := time.Since(began)
				cancel()
				if err != nil {
					continue
				}
				hold(m)
				mu.Lock()
				longest = max(longest, took)
				handed := g.Leave(m)
				mu.Unlock()
				if handed {
					runtime.Gosched()
				}
			}
		})
	}
	time.Sleep(400 * time.Millisecond)
	close(stop)
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		panic("hang: a waiter was forgotten")
	}
	if g.head != nil || g.writer || g.readers != 0 {
		t.Errorf("not empty at the end: %+v", &g)
	}
	if longest > 10*time.Second {
		t.Errorf("one waited for %v", longest)
	}
	t.Logf("longest wait %v", longest)
}

// A gate that begins a new life does not race with a watch of its last one.
func TestInitBesideAWatch(t *testing.T) {
	var mu sync.Mutex
	var g Gate
	mu.Lock()
	g.Init(&mu, 0)
	g.startWatch(nanotime())
	g.Init(&mu, 0)
	mu.Unlock()
	time.Sleep(2 * watchTime)
}
