//go:build linux

package verify

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// An event is one line of a history: an operation was called, or returned.
type event struct {
	At     int64  `json:"t"`
	Client int    `json:"c"`
	N      int    `json:"n"` // number of the client's operation
	Return bool   `json:"r,omitempty"`
	Op     string `json:"o"` // lock, try, unlock, convert
	File   string `json:"f"`
	ID     string `json:"i,omitempty"` // of the file that was locked, never reused
	Mech   string `json:"k"`
	Shared bool   `json:"s,omitempty"` // the mode; at the return of a convert the new one
	From   int    `json:"b,omitempty"` // segments From to To-1
	To     int    `json:"e"`
	Result string `json:"x,omitempty"` // ok, ended, busy, kept, lost, closed, error
	Text   string `json:"m,omitempty"`
	Limit  int64  `json:"d,omitempty"` // deadline
	Long   bool   `json:"l,omitempty"` // the deadline is one that only a hang reaches
	Late   bool   `json:"a,omitempty"` // ctx was done before the call
	Incs   int    `json:"u,omitempty"` // counters raised in the critical section that ends
}

// segments is the number of ranges that a file is divided in.
const segments = 8

// A recorder writes a history. One write(2) for each event: what a process that is
// killed did before is in the file.
type recorder struct{ f *os.File }

func (r *recorder) put(e event) {
	b, err := json.Marshal(e)
	if err == nil {
		_, err = r.f.Write(append(b, '\n'))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "history:", err)
		os.Exit(70)
	}
}

func readHistory(path string) ([]event, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var es []event
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil {
			continue // the half line of a process that was killed
		}
		es = append(es, e)
	}
	return es, s.Err()
}

// An operation is a step of the lock that took effect between Call and Return.
type operation struct {
	Client       int
	Call, Return int64
	Acquire      bool
	Convert      bool // Shared becomes the new mode in one step
	Shared       bool
	From, To     int
}

func (o operation) String() string {
	verb := "unlock"
	if o.Acquire {
		verb = "lock"
	} else if o.Convert {
		verb = "convert to"
	}
	mode := "exclusive"
	if o.Shared {
		mode = "shared"
	}
	return fmt.Sprintf("client %d: %s %s [%d,%d) between %d and %d", o.Client, verb, mode, o.From, o.To, o.Call, o.Return)
}

// narrow puts an operation where it hinders others least: a lock is taken when its
// call returns, and released when that is called. If any order explains a history,
// then the one in which each client holds its lock for the shortest time does.
func (o operation) narrow() operation {
	if o.Acquire || o.Convert && !o.Shared {
		o.Call = o.Return
	} else {
		o.Return = o.Call
	}
	return o
}

// A span is a time in which somebody held the lock, or wanted it.
type span struct {
	from, to int64
	o        operation
}

// A partition is the history of one lock.
type partition struct {
	ops    []operation
	held   []span // certainly held: from the return of lock to the call of unlock
	wanted []span // from the call of lock to the return of unlock, or of the failure
	busy   []span // tries that failed
	late   []time.Duration
	incs   int
}

// death says when a client's process was known to be alive last, and known to be
// dead first.
type death struct{ reaped int64 }

// parse turns events into the histories of each lock, and reports what is wrong
// with single events. byID tells locks apart by file and not by path.
func parse(es []event, byID bool, deaths map[int]death) (map[string]*partition, []string) {
	parts := map[string]*partition{}
	var wrong []string
	byClient := map[int][]event{}
	for _, e := range es {
		byClient[e.Client] = append(byClient[e.Client], e)
	}
	get := func(e event) *partition {
		k := e.File + " " + e.Mech
		if byID {
			k = e.ID + " " + e.Mech
		}
		if parts[k] == nil {
			parts[k] = &partition{}
		}
		return parts[k]
	}
	for client, list := range byClient {
		// A client may hold one lock in each file at a time.
		type holding struct {
			o      operation
			wanted int64
			e      event
		}
		held := map[string]*holding{}
		open := map[int]event{}
		slices.SortStableFunc(list, func(a, b event) int { return int(a.At - b.At) })
		end := func(p *partition, h *holding, call, ret int64) {
			p.ops = append(p.ops, operation{client, call, ret, false, false, h.o.Shared, h.o.From, h.o.To})
			p.held = append(p.held, span{h.o.Return, call, h.o})
		}
		for _, e := range list {
			if !e.Return {
				open[e.N] = e
				continue
			}
			c, ok := open[e.N]
			if !ok {
				wrong = append(wrong, fmt.Sprintf("return without call: %+v", e))
				continue
			}
			delete(open, e.N)
			if e.ID == "" {
				e.ID = c.ID
			}
			p, k := get(e), e.File+" "+e.Mech
			if e.Result == "error" {
				wrong = append(wrong, fmt.Sprintf("client %d: %s %s: %s", client, e.Op, e.File, e.Text))
			}
			if c.Late && e.Result != "ended" {
				wrong = append(wrong, fmt.Sprintf("client %d: %s of %s with a ctx that was done: %s", client, e.Op, e.File, e.Result))
			}
			if e.Result == "ended" {
				if c.Limit > 0 {
					p.late = append(p.late, time.Duration(e.At-c.Limit))
					if e.At < c.Limit-int64(time.Millisecond) {
						wrong = append(wrong, fmt.Sprintf("client %d: %s ended %v before its deadline", client, e.Op, time.Duration(c.Limit-e.At)))
					}
				}
				if c.Long {
					wrong = append(wrong, fmt.Sprintf("client %d: %s of %s hung until its deadline", client, e.Op, e.File))
				}
			}
			switch e.Op {
			case "lock", "try":
				o := operation{client, c.At, e.At, true, false, e.Shared, e.From, e.To}
				switch e.Result {
				case "ok":
					if held[k] != nil {
						wrong = append(wrong, fmt.Sprintf("client %d locks twice: %+v", client, e))
					}
					p.ops = append(p.ops, o)
					held[k] = &holding{o, c.At, e}
				case "busy":
					p.busy = append(p.busy, span{c.At, e.At, o})
				default:
					p.wanted = append(p.wanted, span{c.At, e.At, o})
				}
			case "unlock":
				h := held[k]
				if h == nil {
					wrong = append(wrong, fmt.Sprintf("client %d unlocks what it does not hold: %+v", client, e))
					continue
				}
				p = get(h.e)
				if e.Result == "ok" {
					end(p, h, c.At, e.At)
					p.wanted = append(p.wanted, span{h.wanted, e.At, h.o})
					p.incs += c.Incs
					delete(held, k)
				}
			case "convert":
				h := held[k]
				if h == nil {
					wrong = append(wrong, fmt.Sprintf("client %d converts what it does not hold: %+v", client, e))
					continue
				}
				p = get(h.e)
				p.incs += c.Incs
				was := h.o.Shared
				switch {
				case e.Result == "lost":
					end(p, h, c.At, e.At)
					p.wanted = append(p.wanted, span{h.wanted, e.At, h.o})
					delete(held, k)
				case e.Mech == "ofd" && e.Result == "kept":
				case e.Mech == "ofd":
					p.ops = append(p.ops, operation{client, c.At, e.At, false, true, e.Shared, h.o.From, h.o.To})
					p.held = append(p.held, span{h.o.Return, c.At, h.o})
					h.o.Shared, h.o.Return = e.Shared, e.At
				case e.Shared == was && e.Result == "ok": // into the mode that it is in
				default: // flock(2) releases the old lock first
					end(p, h, c.At, e.At)
					h.o.Shared = e.Shared
					if e.Result == "kept" {
						h.o.Shared = was
					}
					h.o.Call, h.o.Return = c.At, e.At
					p.ops = append(p.ops, h.o)
				}
			}
		}
		d, dead := deaths[client]
		for _, c := range open {
			if !dead {
				wrong = append(wrong, fmt.Sprintf("client %d: %s of %s never returned", client, c.Op, c.File))
				continue
			}
			if p := get(c); c.Op == "lock" || c.Op == "try" {
				p.wanted = append(p.wanted, span{c.At, d.reaped, operation{Client: client, To: segments}})
			}
		}
		for k, h := range held {
			if !dead {
				wrong = append(wrong, fmt.Sprintf("client %d never unlocked %s", client, k))
				continue
			}
			// Its end released the lock, at some time after its last event.
			last := list[len(list)-1].At
			p := get(h.e)
			end(p, h, last, d.reaped)
			p.wanted = append(p.wanted, span{h.wanted, d.reaped, h.o})
		}
	}
	return parts, wrong
}

// rwlock is the state of the model: for each segment the number of holders that
// share it, or -1-n where client n has it alone.
type rwlock [segments]int32

func (s rwlock) step(o operation) (bool, rwlock) {
	alone := int32(-1 - o.Client)
	for i := o.From; i < o.To; i++ {
		switch {
		case o.Acquire && o.Shared:
			if s[i] < 0 {
				return false, s
			}
			s[i]++
		case o.Acquire:
			if s[i] != 0 {
				return false, s
			}
			s[i] = alone
		case o.Convert && o.Shared:
			if s[i] != alone {
				return false, s
			}
			s[i] = 1
		case o.Convert:
			if s[i] != 1 {
				return false, s
			}
			s[i] = alone
		case o.Shared:
			if s[i] < 1 {
				return false, s
			}
			s[i]--
		default:
			if s[i] != alone {
				return false, s
			}
			s[i] = 0
		}
	}
	return true, s
}

var model = porcupine.Model{
	Init: func() any { return rwlock{} },
	Step: func(state, input, output any) (bool, any) {
		ok, next := state.(rwlock).step(input.(operation))
		return ok, next
	},
	Hash: func(state any) uint64 {
		h := uint64(14695981039346656037)
		for _, n := range state.(rwlock) {
			h = (h ^ uint64(uint32(n))) * 1099511628211
		}
		return h
	},
	DescribeOperation: func(input, output any) string { return input.(operation).String() },
}

// check reports what in the history is not that of a reader-writer lock.
func (p *partition) check() []string {
	var wrong []string
	// Two certain holders at once: what the model below would find too, said
	// in clear.
	sort.Slice(p.held, func(i, j int) bool { return p.held[i].from < p.held[j].from })
	var active []span
	for _, h := range p.held {
		active = slices.DeleteFunc(active, func(a span) bool { return a.to <= h.from })
		for _, a := range active {
			if a.o.From < h.o.To && h.o.From < a.o.To && !(a.o.Shared && h.o.Shared) && h.from < h.to {
				wrong = append(wrong, fmt.Sprintf("held together for %v: %v; %v",
					time.Duration(min(a.to, h.to)-h.from), a.o, h.o))
			}
		}
		active = append(active, h)
	}
	if len(wrong) > 0 {
		return wrong
	}
	// Porcupine's search is exponential where many shared locks overlap. So it is
	// given the narrowed history first: an order of that is one of the history
	// too. Only where there is none does it search all orders.
	var narrowed, history []porcupine.Operation
	for _, o := range p.ops {
		history = append(history, porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: o.Return})
		o = o.narrow()
		narrowed = append(narrowed, porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: o.Return})
	}
	if porcupine.CheckOperationsTimeout(model, narrowed, time.Minute) != porcupine.Ok {
		switch porcupine.CheckOperationsTimeout(model, history, time.Minute) {
		case porcupine.Illegal:
			wrong = append(wrong, "the history is not one of a reader-writer lock")
		case porcupine.Unknown:
			wrong = append(wrong, fmt.Sprintf("no order found for a history of %d operations in a minute", len(history)))
		}
	}
	// A try that fails needs somebody who holds the lock or wants it.
	starts, ends := make([]int64, len(p.wanted)), make([]int64, len(p.wanted))
	for i, w := range p.wanted {
		starts[i], ends[i] = w.from, w.to
	}
	slices.Sort(starts)
	slices.Sort(ends)
	for _, b := range p.busy {
		begun := sort.Search(len(starts), func(i int) bool { return starts[i] > b.to })
		over := sort.Search(len(ends), func(i int) bool { return ends[i] >= b.from })
		if begun-over <= 0 {
			wrong = append(wrong, fmt.Sprintf("busy without a holder: %v", b.o))
		}
	}
	return wrong
}
