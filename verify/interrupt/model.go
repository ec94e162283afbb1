// Package interrupt is a model of how flockctx ends a wait in the kernel, small
// enough to look at every state that it can reach. See internal/interrupt: the waiter is
// Run, and block in the root that calls it; the senders are Fire, once for the end of ctx
// and once for Close, or for a goroutine that wants to poll.
package interrupt

import "fmt"

// A Protocol is what is searched. The zero value is the protocol as it is in
// thread_linux.go; each field leaves out one thing that it does.
type Protocol struct {
	SendOnce      bool // Fire sends one signal, and does not repeat it
	NoLeft        bool // Run does not say that it has left: the thread's number stays
	SendUnlocked  bool // Fire sends after it has unlocked the mutex
	NoFlush       bool // Run makes no system call before it lets the thread go
	NoWait        bool // block does not wait for the function of AfterFunc
	NoFired       bool // Run takes every EINTR for the end
	IgnoreFired   bool // Run tries again after every EINTR
	EnterFired    bool // Run does not ask whether Fire came first
	NoArm         bool // Fire does not look after the handler
	Restart       bool // the handler has SA_RESTART
	SignalBlocked bool // the thread's signal mask keeps the signal from it
}

// Where the waiter is.
const (
	outside   = iota // about to lock the mutex, and to say on which thread it is
	before           // in user mode, about to make the blocking call
	inside           // in the kernel, in the blocking call
	eintr            // the call returned EINTR; about to read fired
	leaving          // about to say that it has left
	flushing         // about to make a system call, where a signal was sent
	stopping         // has let the thread go; about to call stop, and to wait for ended if it is too late
	returned         // block has returned
	numPlaces        // (not a place)
)

// Where a sender is.
const (
	idle     = iota // not called yet
	called          // about to lock the mutex for the first time
	sending         // has locked in.mu and seen that the waiter is still there
	unlocked        // SendUnlocked: has unlocked, and is about to send
	waiting         // has unlocked, and waits for gone or its timer
	done            // has returned
	stopped         // AfterFunc's stop came first: it never runs
)

// numSenders: for the end of ctx, and for Close.
const (
	ctx = iota
	closing
	numSenders
)

type state struct {
	waiter  uint8
	sender  [numSenders]uint8
	fired   bool // c.fired
	sent    bool // c.sent
	there   bool // c.tid is not 0
	gone    bool // c.gone is closed
	ignored bool // the program ignores the signal, which it does once
	changed bool // it has
	pending bool // the signal was sent to the thread and not delivered
	granted bool // the call returned with the lock
	early   bool // the call was given up though nobody wanted that
	noise   bool // a signal of somebody else interrupted the call once
	stray   bool // a signal was delivered, or sent, to a thread that does other things
}

func (s state) String() string {
	w := [numPlaces]string{"outside", "before", "inside", "eintr", "leaving", "flushing", "stopping", "returned"}
	d := []string{"idle", "called", "sending", "unlocked", "waiting", "done", "stopped"}
	return fmt.Sprintf("waiter %s, ctx %s, Close %s, fired %v, sent %v, there %v, pending %v, ignored %v, granted %v",
		w[s.waiter], d[s.sender[ctx]], d[s.sender[closing]], s.fired, s.sent, s.there, s.pending, s.ignored, s.granted)
}

// A step is a transition. What environment does may also never happen: that the
// lock is granted, ctx ends, Close is called, the program ignores the signal, or a foreign
// one arrives. All other
// actors make a step sometime, if they can all the time (weak fairness).
type step struct {
	to    state
	actor actor
	name  string
}

type actor uint8

const (
	environment actor = iota
	waiterActor
	ctxActor
	closeActor
	kernel // delivers signals
	numActors
)

// next lists all that can happen in s.
//
// The mutex is held for the length of a step only: what a goroutine does under it is
// one step, which is exact, as nobody else reads or writes these fields then. Only
// tgkill(2) acts on something else, the thread, and so has a step of its own where
// the protocol makes it without the mutex. Of a standard signal one at most is pending.
func (p Protocol) next(s state) (steps []step) {
	add := func(a actor, name string, change func(*state)) {
		t := s
		change(&t)
		steps = append(steps, step{t, a, name})
	}

	if !s.changed {
		add(environment, "the program ignores the signal", func(t *state) {
			// What is pending of a signal that becomes ignored is dropped.
			t.ignored, t.changed, t.pending = true, true, false
		})
	}

	// The waiter.
	switch s.waiter {
	case outside:
		add(waiterActor, "says that it is there", func(t *state) {
			if t.fired && !p.EnterFired {
				t.waiter = stopping
				return
			}
			t.waiter, t.there = before, true
		})
	case before:
		add(waiterActor, "enters the call", func(t *state) { t.waiter = inside })
	case inside:
		add(environment, "the lock is granted", func(t *state) {
			t.waiter, t.granted = leaving, true
			if t.pending && !p.SignalBlocked {
				t.pending = false // delivered on the way out
			}
		})
		if !s.noise {
			add(environment, "a foreign signal interrupts the call", func(t *state) { t.waiter, t.noise = eintr, true })
		}
	case eintr:
		add(waiterActor, "reads fired", func(t *state) {
			switch {
			case p.IgnoreFired:
				t.waiter = before
			case p.NoFired, t.fired:
				t.early = !t.fired
				t.waiter = leaving
			default:
				t.waiter = before
			}
		})
	case leaving:
		add(waiterActor, "says that it left", func(t *state) {
			t.waiter = flushing
			t.there = p.NoLeft
			t.gone = true
		})
	case flushing:
		add(waiterActor, "flushes and lets the thread go", func(t *state) {
			t.waiter = stopping
			if t.sent && !p.NoFlush && !p.SignalBlocked {
				t.pending = false
			}
		})
	case stopping:
		switch {
		case s.sender[ctx] == idle:
			add(waiterActor, "stops the AfterFunc", func(t *state) { t.waiter, t.sender[ctx] = returned, stopped })
		case s.sender[ctx] == done || p.NoWait:
			add(waiterActor, "has waited for the AfterFunc", func(t *state) { t.waiter = returned })
		}
	}

	// The senders.
	for i := range numSenders {
		a := ctxActor + actor(i)
		switch s.sender[i] {
		case idle:
			// Close finds the call in the handle until the waiter has
			// returned, and may be slow to use it.
			if s.waiter != returned {
				name := "ctx ends"
				if i == closing {
					name = "Close is called"
				}
				add(environment, name, func(t *state) { t.sender[i] = called })
			}
		case called:
			add(a, "sets fired", func(t *state) {
				t.fired = true
				t.sender[i] = sending
				if !t.there {
					t.sender[i] = done
				}
			})
		case sending:
			if p.SendUnlocked {
				add(a, "unlocks", func(t *state) {
					t.sender[i] = unlocked
					if !t.there {
						t.sender[i] = done
					}
				})
				break
			}
			add(a, "sends", func(t *state) {
				if !t.there { // read under the same lock
					t.sender[i] = done
					return
				}
				p.send(t)
				t.sender[i] = waiting
			})
		case unlocked:
			add(a, "sends", func(t *state) {
				p.send(t)
				t.sender[i] = waiting
			})
		case waiting:
			// NoLeft: gone still ends the loop, but only when it is looked at.
			switch {
			case p.SendOnce && !s.gone:
			case !s.there || p.SendOnce:
				add(a, "sees that the waiter left", func(t *state) { t.sender[i] = done })
			case p.NoLeft && s.gone:
				add(a, "sees gone", func(t *state) { t.sender[i] = done })
				add(a, "its timer is first", func(t *state) { t.sender[i] = sending })
			default:
				add(a, "its timer expires", func(t *state) { t.sender[i] = sending })
			}
		}
	}

	// The kernel delivers what is pending: in user mode late, at any time; in the
	// call by ending it.
	if s.pending && !p.SignalBlocked {
		switch s.waiter {
		case inside:
			add(kernel, "the signal ends the call", func(t *state) {
				t.pending = false
				if !p.Restart {
					t.waiter = eintr
				}
			})
		default:
			add(kernel, "the signal is delivered", func(t *state) {
				t.pending = false
				if t.waiter >= stopping {
					t.stray = true
				}
			})
		}
	}
	return steps
}

func (p Protocol) send(t *state) {
	if !p.NoArm {
		t.ignored = false
	}
	t.sent = true
	t.pending = t.pending || !t.ignored
	if t.waiter >= stopping {
		t.stray = true
	}
}

// A Violation is a promise that the protocol breaks, and how.
type Violation struct {
	Promise string
	Trace   []string
}

// The promises.
const (
	NoStray       = "no signal reaches the thread once it does other things"
	NoGoroutine   = "no goroutine is left after the return"
	NoEarly       = "the wait is given up only where somebody ended it"
	NoLost        = "an ended wait returns, though the lock never comes"
	AllWaitReturn = "a granted wait returns"
)

// Search looks at every state that p can reach, and returns how many there are and
// one violation of each promise that it breaks.
func (p Protocol) Search() (states int, found []Violation) {
	type from struct {
		state state
		name  string
	}
	parent := map[state]from{{}: {}}
	order := []state{{}}
	edges := map[state][]step{}
	trace := func(s state) (names []string) {
		for s != (state{}) {
			f := parent[s]
			names = append([]string{f.name}, names...)
			s = f.state
		}
		return names
	}
	broken := map[string]bool{}
	report := func(promise string, s state) {
		if !broken[promise] {
			broken[promise] = true
			found = append(found, Violation{promise, append(trace(s), s.String())})
		}
	}
	for i := 0; i < len(order); i++ {
		s := order[i]
		edges[s] = p.next(s)
		for _, e := range edges[s] {
			if _, seen := parent[e.to]; !seen {
				parent[e.to] = from{s, e.name}
				order = append(order, e.to)
			}
		}
		if s.stray || s.waiter == returned && s.pending {
			report(NoStray, s)
		}
		if s.waiter == returned && s.sender[ctx] != done && s.sender[ctx] != stopped {
			report(NoGoroutine, s)
		}
		if s.early {
			report(NoEarly, s)
		}
	}
	// Liveness: among the states where a wait was ended, or granted, and block has
	// not returned, there must be no run that stays for ever and is fair. Such a
	// run ends in a strongly connected set of states in which each actor moves, or
	// somewhere cannot.
	for _, goal := range []struct {
		promise string
		in      func(state) bool
	}{
		{NoLost, func(s state) bool { return s.waiter != returned && !s.granted && ended(s) }},
		{AllWaitReturn, func(s state) bool { return s.waiter != returned && s.granted }},
	} {
		var nodes []state
		for _, s := range order {
			if goal.in(s) {
				nodes = append(nodes, s)
			}
		}
		succ := func(s state) (out []step) {
			for _, e := range edges[s] {
				if e.actor != environment && goal.in(e.to) {
					out = append(out, e)
				}
			}
			return out
		}
		for _, set := range components(nodes, succ) {
			member := map[state]bool{}
			for _, s := range set {
				member[s] = true
			}
			fair := true
			for a := waiterActor; a < numActors; a++ {
				moves, disabled := false, false
				for _, s := range set {
					enabled := false
					for _, e := range edges[s] {
						if e.actor == a {
							enabled = true
							moves = moves || member[e.to]
						}
					}
					disabled = disabled || !enabled
				}
				if !moves && !disabled {
					fair = false // a could leave all the time, so it does
				}
			}
			if fair {
				report(goal.promise, set[0])
			}
		}
	}
	return len(order), found
}

// ended reports whether ctx has ended or Close was called.
func ended(s state) bool {
	for _, d := range s.sender {
		if d != idle && d != stopped {
			return true
		}
	}
	return false
}

// components returns the strongly connected components of a graph: Tarjan's
// algorithm. One state is one too, in which a run can stay where all are disabled.
func components(nodes []state, succ func(state) []step) (sets [][]state) {
	index, low := map[state]int{}, map[state]int{}
	on := map[state]bool{}
	var stack []state
	var visit func(s state)
	visit = func(s state) {
		index[s] = len(index) + 1
		low[s] = index[s]
		stack, on[s] = append(stack, s), true
		for _, e := range succ(s) {
			if index[e.to] == 0 {
				visit(e.to)
				low[s] = min(low[s], low[e.to])
			} else if on[e.to] {
				low[s] = min(low[s], index[e.to])
			}
		}
		if low[s] == index[s] {
			var set []state
			for {
				t := stack[len(stack)-1]
				stack, on[t] = stack[:len(stack)-1], false
				set = append(set, t)
				if t == s {
					break
				}
			}
			sets = append(sets, set)
		}
	}
	for _, s := range nodes {
		if index[s] == 0 {
			visit(s)
		}
	}
	return sets
}
