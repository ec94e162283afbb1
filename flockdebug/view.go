package flockdebug

import (
	"cmp"
	"fmt"
	"slices"
)

const (
	pageRows    = 100 // of each table
	maxDrawings = 12

	longHeld     = 60 // seconds
	longInTheWay = 1  // where somebody waits
)

// A view is a state as the page shows it: what is alike is summed up, and what is much
// comes in pages.
type view struct {
	*state
	Drawings   []drawing
	MoreChains int
	Waits      []group
	MoreWaits  int
	Rows       []lock // of Held
	From, To   int    // these, from 1 on
	Prev, Next string // the query of another page, if there is one
	Code       []group
	Peers      []peer // of Others
	MorePeers  int
}

// A group are locks that one line of code takes or waits for, on one file or on any.
type group struct {
	lock  // the one that is held or waits longest
	Count int
	Files int
}

func newView(s *state, from int) *view {
	v := &view{state: s}
	for _, c := range newGraph(s).chains() {
		if c.cyclic {
			v.Cycles = append(v.Cycles, c.names())
		}
		if len(v.Drawings) == maxDrawings {
			v.MoreChains++
			continue
		}
		v.Drawings = append(v.Drawings, c.draw())
	}
	v.Waits = groups(s.Waiting, func(l *lock) any { return [4]string{l.Path, l.Range(), l.Mode, l.Code} })
	if len(v.Waits) > pageRows {
		v.MoreWaits = len(v.Waits) - pageRows
		v.Waits = v.Waits[:pageRows]
	}
	if v.Code = groups(s.Held, func(l *lock) any { return l.Code }); len(v.Code) == len(s.Held) {
		v.Code = nil // the table of locks says it all
	}
	slices.SortStableFunc(v.Code, func(a, b group) int { return cmp.Compare(b.Count, a.Count) })
	if len(v.Code) > pageRows {
		v.Code = v.Code[:pageRows]
	}

	v.Peers = s.Others[:min(len(s.Others), pageRows)]
	v.MorePeers = len(s.Others) - len(v.Peers)

	// Those in somebody's way first.
	slices.SortStableFunc(s.Held, func(a, b lock) int { return cmp.Compare(b.InTheWay, a.InTheWay) })
	from = max(0, min(from, len(s.Held)-1)) / pageRows * pageRows
	to := min(from+pageRows, len(s.Held))
	v.Rows, v.From, v.To = s.Held[from:to], from+1, to
	if from > 0 {
		v.Prev = fmt.Sprintf("?from=%d", from-pageRows)
	}
	if to < len(s.Held) {
		v.Next = fmt.Sprintf("?from=%d", to)
	}
	return v
}

// groups sums up locks that are alike by key. The locks come longest first.
func groups(locks []lock, key func(*lock) any) (gs []group) {
	at := map[any]int{}
	files := map[any]map[string]bool{}
	for i := range locks {
		l := &locks[i]
		k := key(l)
		j, ok := at[k]
		if !ok {
			j = len(gs)
			at[k], files[k] = j, map[string]bool{}
			gs = append(gs, group{lock: *l})
		}
		gs[j].Count++
		files[k][l.Path] = true
		gs[j].Files = len(files[k])
	}
	return gs
}

// Trace returns the stack, for the page.
func (l lock) Trace() []string { return trace(l.pcs) }

// Long reports whether the lock is held for long.
func (l lock) Long() bool { return l.Seconds >= longHeld }

// Blocks reports whether others wait for it for long.
func (l lock) Blocks() bool { return l.InTheWay > 0 && l.Seconds >= longInTheWay }
