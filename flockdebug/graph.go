package flockdebug

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/flockctx/flockctx"
)

// A graph is who waits for whom: from a waiter to the file that it waits for, and from the
// file to who holds it. Waiters that hold nothing are one node per file; they cannot be
// part of a cycle.
//
// Who took a lock in this process stands for who holds it, and a process for all of its
// threads: so a cycle is one in the eyes of a reader, who judges whether somebody else
// can break it.
type graph struct {
	nodes []*node
	byKey map[string]*node
}

type node struct {
	file          bool
	title, detail string
	members       int     // that the node stands for, or that wait for the file
	longest       float64 // seconds that one of them waits
	converts      bool    // its wait is one to convert a lock that it holds
	cyclic        bool
	out           []edge

	// Of the search for cycles.
	index, low int
	open       bool
}

type edge struct {
	to   *node
	soft bool // it waits behind somebody else who waits, not for the holder
}

// An actor is a goroutine of this process, or another process.
type actor struct{ key, title, detail string }

func (l *lock) actor() actor {
	if l.Goroutine == 0 {
		return actor{"?", "this process", "locked before the recording"}
	}
	return actor{fmt.Sprint("g", l.Goroutine), fmt.Sprintf("goroutine %d", l.Goroutine), l.Code}
}

func (p *peer) actor() actor {
	if p.PID == 0 {
		return actor{"??", "an unknown process", ""}
	}
	return actor{fmt.Sprint("p", p.PID), fmt.Sprintf("pid %d", p.PID), p.Command}
}

// A wish is a lock that somebody waits for, or holds.
type wish struct {
	file
	actor
	mode, op string
	seconds  float64
}

// wishes returns those that wait, and those that hold.
func (s *state) wishes() (waits, holds []wish) {
	for i := range s.Waiting {
		l := &s.Waiting[i]
		waits = append(waits, wish{l.file, l.actor(), l.Mode, l.Op, l.Seconds})
	}
	for i := range s.Held {
		l := &s.Held[i]
		holds = append(holds, wish{l.file, l.actor(), l.Mode, "", l.Seconds})
	}
	for i := range s.Others {
		p := &s.Others[i]
		w := wish{p.file, p.actor(), p.Mode, "lock", 0}
		if p.Waiting {
			waits = append(waits, w)
		} else {
			holds = append(holds, w)
		}
	}
	return waits, holds
}

// newGraph also counts in s whom each held lock is in the way of.
func newGraph(s *state) *graph {
	g := &graph{byKey: map[string]*node{}}
	waits, holds := s.wishes()
	byPath := map[string][]int{} // holds
	for i, h := range holds {
		byPath[h.Path] = append(byPath[h.Path], i)
	}
	waiting, holding := map[string]bool{}, map[string]bool{} // actors of files that somebody waits for
	inTheWay := make([]int, len(holds))
	for _, w := range waits {
		waiting[w.key] = true
		for _, i := range byPath[w.Path] {
			if h := holds[i]; h.overlaps(w.file) {
				holding[h.key] = true
				inTheWay[i]++
			}
		}
	}
	for i := range s.Held {
		s.Held[i].InTheWay = inTheWay[i]
	}

	groups := map[string]int{}
	for _, w := range waits {
		f := g.fileNode(w.file)
		key := w.key
		if !holding[w.key] {
			key = "waiters of " + f.title + w.detail
		}
		from := g.actorNode(key, w.actor)
		from.detail = w.detail // where it waits tells more than where it took what it holds
		from.converts = from.converts || w.op == "convert"
		if groups[key]++; !holding[w.key] {
			from.members = groups[key]
		}
		soft := true
		for _, i := range byPath[w.Path] {
			h := holds[i]
			if !h.overlaps(w.file) {
				continue
			}
			soft = soft && h.mode == w.mode && w.mode == flockctx.Shared.String()
			key := h.key
			if !waiting[h.key] && len(byPath[w.Path]) > 3 {
				key = "holders of " + f.title
			}
			to := g.actorNode(key, h.actor)
			if !f.leadsTo(to) {
				f.out = append(f.out, edge{to: to})
				if key != h.key {
					to.members = len(byPath[w.Path])
				}
			}
		}
		if !from.leadsTo(f) {
			from.out = append(from.out, edge{to: f, soft: soft})
		}
		f.members++
		f.longest = max(f.longest, w.seconds)
	}
	g.findCycles()
	return g
}

// node returns the node of that key, which it makes with fn if there is none.
func (g *graph) node(key string, fn func() *node) *node {
	n := g.byKey[key]
	if n == nil {
		n = fn()
		g.byKey[key] = n
		g.nodes = append(g.nodes, n)
	}
	return n
}

func (g *graph) fileNode(f file) *node {
	return g.node(fmt.Sprintf("file %+v", f), func() *node {
		detail := f.Mechanism
		if f.Start != 0 || f.Length != 0 {
			detail += f.Range()
		}
		return &node{file: true, title: f.Path, detail: detail}
	})
}

func (g *graph) actorNode(key string, a actor) *node {
	return g.node("actor "+key, func() *node { return &node{title: a.title, detail: a.detail} })
}

func (n *node) leadsTo(to *node) bool {
	return slices.ContainsFunc(n.out, func(e edge) bool { return e.to == to })
}

// findCycles marks the nodes that are in a cycle: those of a strongly connected component
// (Tarjan 1972) with two actors, or with one that waits for what it holds. One that waits
// to convert its own lock waits for the others that share it.
func (g *graph) findCycles() {
	index := 0
	var stack []*node
	var visit func(n *node)
	visit = func(n *node) {
		index++
		n.index, n.low, n.open = index, index, true
		stack = append(stack, n)
		for _, e := range n.out {
			switch {
			case e.soft:
			case e.to.index == 0:
				visit(e.to)
				n.low = min(n.low, e.to.low)
			case e.to.open:
				n.low = min(n.low, e.to.index)
			}
		}
		if n.low != n.index {
			return
		}
		i := slices.Index(stack, n)
		component := stack[i:]
		actors, converts := 0, false
		for _, m := range component {
			m.open = false
			if !m.file {
				actors++
				converts = converts || m.converts
			}
		}
		for _, m := range component {
			m.cyclic = actors > 1 || actors == 1 && len(component) > 1 && !converts
		}
		stack = stack[:i:i]
	}
	for _, n := range g.nodes {
		if n.index == 0 {
			visit(n)
		}
	}
}

// A chain is the part of the graph that hangs together.
type chain struct {
	nodes   []*node // each before those that it waits for, where there is no cycle
	cyclic  bool
	longest float64
}

// chains returns them, cycles first and then those with the longest wait.
func (g *graph) chains() (cs []chain) {
	near := map[*node][]*node{}
	into := map[*node]int{}
	for _, n := range g.nodes {
		for _, e := range n.out {
			near[n] = append(near[n], e.to)
			near[e.to] = append(near[e.to], n)
			into[e.to]++
		}
	}
	seen, placed := map[*node]bool{}, map[*node]bool{}
	for _, first := range g.nodes {
		if seen[first] {
			continue
		}
		all := []*node{first}
		seen[first] = true
		for i := 0; i < len(all); i++ {
			for _, m := range near[all[i]] {
				if !seen[m] {
					seen[m] = true
					all = append(all, m)
				}
			}
		}
		var c chain
		var place func(n *node)
		place = func(n *node) { // in reverse: after all that it waits for
			if placed[n] {
				return
			}
			placed[n] = true
			for _, e := range n.out {
				place(e.to)
			}
			c.nodes = append(c.nodes, n)
		}
		// Where nobody waits for it a chain begins; in a cycle it begins with an actor.
		slices.SortStableFunc(all, func(a, b *node) int {
			return cmp.Or(cmp.Compare(min(into[a], 1), min(into[b], 1)), cmp.Compare(one(a.file), one(b.file)))
		})
		for _, n := range all {
			place(n)
			c.cyclic = c.cyclic || n.cyclic
			c.longest = max(c.longest, n.longest)
		}
		slices.Reverse(c.nodes)
		cs = append(cs, c)
	}
	slices.SortStableFunc(cs, func(a, b chain) int {
		return cmp.Or(cmp.Compare(one(b.cyclic), one(a.cyclic)), cmp.Compare(b.longest, a.longest))
	})
	return cs
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// names returns those of a cycle: actors and files.
func (c chain) names() (names []string) {
	for _, n := range c.nodes {
		if n.cyclic {
			names = append(names, n.title)
		}
	}
	return names
}
