//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A target is what flockctx wants to reach in a group of cases: as a ratio within one
// run where that is possible, how many times better than other it is at least; else, in
// the unit of the metric, what it must not exceed or, with atLeast, stay under.
type target struct {
	text         string // what the cases have in common
	scenario     string
	cases        []string
	cand, metric string
	other        string // "": limit is absolute
	limit        float64
	atLeast      bool
}

func processCases(us ...int) (names []string) {
	for _, n := range []int{2, 4, 16} {
		for _, u := range us {
			names = append(names, fmt.Sprintf("%d processes, %d µs", n, u))
		}
	}
	return names
}

func (r report) targets() []target {
	path, kept := r.uncontendedCases()
	const us, ms = 1e3, 1e6
	one := func(name string) []string { return []string{name} }
	all := []string{"2 processes", "4 processes", "16 processes"}
	few := []string{"10 waiters on 10 files", "100 waiters on 100 files"}
	short, long := processCases(0, 5), processCases(0, 5, 50, 500)
	t := []target{
		{"lock and release by path, against gofrs/flock", "uncontended", one(path), ours, "lock and release", gofrs10, 1.05, true},
		{"lock and release by path, against gofrs/flock and its user comparing the path after the grant", "uncontended", one(path), ours, "lock and release", gofrsStat, 1.05, true},
		{"lock and release by path, against open, flock, close", "uncontended", one(path), ours, "lock and release", bare, 0.56, true},
		{"lock and release by path, against the six system calls of a verified lock", "uncontended", one(path), ours, "lock and release", bareStat, 0.91, true},
		{"lock and release, file kept open, against gofrs/flock", "uncontended", one(kept), oursKept, "lock and release", gofrs10, 2.2, true},
		{"lock and release, file kept open, against flock, stat, flock", "uncontended", one(kept), oursKept, "lock and release", bareStat, 0.87, true},
	}
	for _, raw := range []struct{ cand, text string }{{bare, "two flock calls from Go"}, {bareStat, "flock, stat, flock from Go"}} {
		t = append(t,
			target{"throughput of processes, against " + raw.text, "processes", long, oursKept, "throughput", raw.cand, 1, true},
			target{"the same with 0 and 5 µs under the lock, against " + raw.text, "processes", short, oursKept, "throughput", raw.cand, 1.3, true})
	}
	t = append(t, []target{
		{"hand-over between 2 and 4 processes, median, against flock(2) from Go", "handover", all[:2], oursKept, "p50", bare, 0.95, true},
		{"hand-over between 16 processes, median, against flock(2) from Go", "handover", all[2:], oursKept, "p50", bare, 0.87, true},
		{"hand-over between processes, p99, against flock(2) from Go", "handover", all, oursKept, "p99", bare, 0.67, true},
		{"hand-over of a slot, median, against that of a lock", "handover", all, oursSlot, "p50", ours, 0.5, true},
		{"hand-over within a process, 16 goroutines, median", "goroutines", one("16 goroutines, hold 0s"), oursKept, "hand-over p50", "", 2 * us, false},
		{"cancel to return, median", "cancel", []string{"parked", "another process holds it"}, oursKept, "p50", "", 150 * us, false},
		{"cancel to return, p99", "cancel", []string{"parked", "another process holds it"}, oursKept, "p99", "", 1 * ms, false},
		{"cancel to return, polling, p99", "cancel", one("another process holds it"), oursPoll, "p99", "", 1 * ms, false},
		{"256 goroutines: throughput, against gofrs/flock", "goroutines", []string{"256 goroutines, hold 0s", "256 goroutines, hold 100µs"}, ours, "throughput", gofrs10, 0.95, true},
		{"256 goroutines: longest wait, against gofrs/flock", "goroutines", []string{"256 goroutines, hold 0s", "256 goroutines, hold 100µs"}, ours, "longest wait", gofrs10, 3, true},
		{"another process beside 64 goroutines: grants in 2 s", "foreign", []string{"64 goroutines, hold 0s", "64 goroutines, hold 100µs"}, ours, "grants to the other in 2 s", "", 200, true},
		{"another process beside 64 goroutines: its longest wait", "foreign", []string{"64 goroutines, hold 0s", "64 goroutines, hold 100µs"}, ours, "its longest wait", "", 100 * ms, false},
		{"4 processes, 50:50: throughput, against flock(2) from Go", "readwrite", one("50:50, 4 processes with 16 goroutines each"), oursKept, "throughput", bare, 0.95, true},
		{"4 processes, 99:1: throughput, against flock(2) from Go", "readwrite", one("99:1, 4 processes with 16 goroutines each"), oursKept, "throughput", bare, 1, true},
		{"Fair: longest wait to write", "fair", []string{"a writer beside readers of 3 processes", "16 writers", "99:1, 16 processes"}, oursFair, "longest wait to write", "", 100 * ms, false},
		{"Fair: throughput of 16 processes, against the same without", "fair", []string{"16 writers", "99:1, 16 processes"}, oursFair, "throughput", oursKept, 0.8, true},
		{"Fair where nobody else wants the lock, against the same without", "fair", r.fairCases(), oursFair, "lock and release", oursKept, 0.67, true},
		{"10 and 100 waiters: memory each, against gofrs/flock", "waiters", few, ours, "memory each", gofrs10, 1, true},
		{"100 waiters on 100 files: all cancelled", "waiters", few[1:], ours, "all cancelled", "", 1 * ms, false},
		{"3000 waiters on 3000 files: threads", "waiters", one("3000 waiters on 3000 files"), ours, "threads", "", 200, false},
		{"3000 and 10000 waiters on as many files: CPU", "waiters", []string{"3000 waiters on 3000 files", "10000 waiters on 10000 files"}, ours, "CPU", "", 5, false},
		{"3000 waiters on 3000 files: memory each", "waiters", one("3000 waiters on 3000 files"), ours, "memory each", "", 8192, false},
		{"10000 waiters on 10000 files: memory each", "waiters", one("10000 waiters on 10000 files"), ours, "memory each", "", 4096, false},
		{"3000 waiters on 3000 files: all cancelled", "waiters", one("3000 waiters on 3000 files"), ours, "all cancelled", "", 500 * ms, false},
		{"100 waiters on one file: CPU (10 ms in 3 s)", "waiters", one("100 waiters on one file"), ours, "CPU", "", 1.0 / 3, false},
		{"100 waiters on one file: threads", "waiters", one("100 waiters on one file"), ours, "threads", "", 20, false},
	}...)
	return t
}

// A verdict is a target in one of its cases.
type verdict struct {
	kase string
	got  ratio
	unit string
	met  bool
}

// verdicts returns those of t whose cases were measured.
func (r report) verdicts(t target) (v []verdict) {
	rec := r[t.scenario]
	for _, kase := range t.cases {
		c := rec.find(kase, t.cand, t.metric)
		if c == nil {
			continue
		}
		one := verdict{kase: kase}
		if t.other == "" {
			one.unit = c.Unit
			one.got = ratio{median(c.Rounds), slices.Min(c.Rounds), slices.Max(c.Rounds)}
		} else {
			o := rec.find(kase, t.other, t.metric)
			if o == nil {
				continue
			}
			one.got = advantage(c, o)
		}
		if math.IsNaN(one.got.mid) {
			continue
		}
		// What is printed decides, so that a reader comes to the same verdict.
		mid := one.got.mid
		if t.other != "" {
			mid, _ = strconv.ParseFloat(strings.TrimSpace(short(mid)), 64)
		}
		one.met = mid <= t.limit
		if t.atLeast {
			one.met = mid >= t.limit
		}
		v = append(v, one)
	}
	return v
}

// worst returns the verdict that is the furthest from what is wanted.
func (t target) worst(v []verdict) verdict {
	w := v[0]
	for _, o := range v[1:] {
		if t.atLeast == (o.got.mid < w.got.mid) {
			w = o
		}
	}
	return w
}

func (t target) wanted(unit string) string {
	if t.atLeast {
		return "≥ " + format(t.limit, unit)
	}
	return "≤ " + format(t.limit, unit)
}

// writeTargets writes a row for each scenario: how many of its targets are reached, and
// what is missed, by how much in the worst case.
func (r report) writeTargets(out io.Writer) {
	fmt.Fprintf(out, "\n## Targets\n\n| scenario | reached | missed: measured (target) |\n|---|--:|---|\n")
	for _, s := range scenarios {
		if r[s.name] == nil {
			continue
		}
		met, all := 0, 0
		var missed []string
		for _, t := range r.targets() {
			v := r.verdicts(t)
			if t.scenario != s.name || len(v) == 0 {
				continue
			}
			all++
			n := 0
			for _, o := range v {
				if !o.met {
					n++
				}
			}
			if n == 0 {
				met++
				continue
			}
			w := t.worst(v)
			text := fmt.Sprintf("%s: %s (%s)", t.text, format(w.got.mid, w.unit), t.wanted(w.unit))
			if len(v) > 1 {
				text = fmt.Sprintf("%s, in %d of %d cases: %s at worst (%s)", t.text, n, len(v), format(w.got.mid, w.unit), t.wanted(w.unit))
			}
			missed = append(missed, text)
		}
		reached := "–"
		if all > 0 {
			reached = fmt.Sprintf("%d of %d", met, all)
		}
		fmt.Fprintf(out, "| [%s](%s.md) | %s | %s |\n", s.title, s.name, reached, strings.Join(missed, "; "))
	}
}

// writeVerdicts writes the targets of a scenario, case by case.
func (r report) writeVerdicts(out io.Writer, scenario string) {
	head := false
	for _, t := range r.targets() {
		if t.scenario != scenario {
			continue
		}
		for _, v := range r.verdicts(t) {
			if !head {
				head = true
				fmt.Fprintf(out, "\n## Targets\n\n| | case | target | measured: median (least–greatest round) | |\n|---|---|--:|--:|---|\n")
			}
			text := "reached"
			if !v.met {
				text = "**missed**"
			}
			fmt.Fprintf(out, "| %s | %s | %s | %s (%s–%s) | %s |\n", t.text, v.kase, t.wanted(v.unit),
				format(v.got.mid, v.unit), format(v.got.min, v.unit), format(v.got.max, v.unit), text)
		}
	}
}

// uncontendedCases returns the names of the first cases of that scenario: those on a disk.
func (r report) uncontendedCases() (path, kept string) {
	if rec := r["uncontended"]; rec != nil {
		for _, c := range rec.Cells {
			if disk, ok := strings.CutPrefix(c.Case, "by path, exclusive, "); ok {
				return c.Case, "kept, exclusive, " + disk
			}
		}
	}
	return "", ""
}

func (r report) fairCases() (names []string) {
	if rec := r["fair"]; rec != nil {
		for _, kase := range rec.cases() {
			if strings.HasPrefix(kase, "nobody else") {
				names = append(names, kase)
			}
		}
	}
	return names
}
