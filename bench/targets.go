//go:build linux

package main

import (
	"fmt"
	"io"
	"slices"
)

// A target is what flockctx wants to reach: beside another candidate how many times
// better it is at least, which is a ratio within one run, or else a figure.
type target struct {
	text           string
	scenario, kase string
	cand, metric   string
	other          string // "": limit is a figure, in the metric's unit
	limit          float64
}

func (r *record) targets() (t []target) {
	path, kept := r.uncontendedCases()
	const us, ms = 1e3, 1e6
	add := func(text, scenario, kase, cand, metric, other string, limit float64) {
		t = append(t, target{text, scenario, kase, cand, metric, other, limit})
	}
	add("Lock and Close by path, beside gofrs TryLockContext and Unlock", "uncontended", path, ours, "lock and release", gofrs10, 1.05)
	add("Lock and Close by path, beside the same and the path compared after the grant", "uncontended", path, ours, "lock and release", gofrsStat, 1.05)
	add("Lock and Close by path, beside open, flock, close", "uncontended", path, ours, "lock and release", bare, 0.55)
	add("Lock and Close by path, beside the six system calls of a verified lock", "uncontended", path, ours, "lock and release", bareStat, 0.91)
	add("Lock and Unlock on a kept handle, beside gofrs", "uncontended", kept, oursKept, "lock and release", gofrs10, 2.2)
	add("Lock and Unlock on a kept handle, beside two flock calls and a stat", "uncontended", kept, oursKept, "lock and release", bareStat, 0.87)
	for _, n := range []int{2, 4, 16} {
		limit := 0.95
		if n == 16 {
			limit = 0.87
		}
		kase := fmt.Sprintf("%d processes", n)
		add("hand-over between "+kase+", p50, beside flock(2)", "handover", kase, oursKept, "p50", bare, limit)
		add("hand-over between "+kase+", p99, beside flock(2)", "handover", kase, oursKept, "p99", bare, 0.67)
	}
	for _, n := range processCounts {
		for _, section := range sections {
			kase := fmt.Sprintf("%d processes, section %v", n, section)
			limit := 1.0
			if section < 50*1000 {
				limit = 1.3
			}
			add(kase+": throughput, beside flock, stat, flock", "processes", kase, oursKept, "throughput", bareStat, limit)
			add(kase+": longest wait, beside the same", "processes", kase, oursKept, "longest wait", bareStat, 1)
		}
	}
	add("hand-over within the process, 16 goroutines, p50", "goroutines", "16 goroutines, hold 0s", oursKept, "hand-over p50", "", 2*us)
	add("cancel to return, in the kernel, p50", "cancel", "another process holds it", oursKept, "p50", "", 150*us)
	add("cancel to return, in the kernel, p99", "cancel", "another process holds it", oursKept, "p99", "", 1*ms)
	add("cancel to return, parked, p50", "cancel", "parked", oursKept, "p50", "", 150*us)
	add("cancel to return, parked, p99", "cancel", "parked", oursKept, "p99", "", 1*ms)
	add("cancel to return, polling, p50", "cancel", "another process holds it", oursPoll, "p50", "", 150*us)
	add("cancel to return, polling, p99", "cancel", "another process holds it", oursPoll, "p99", "", 1*ms)
	for _, hold := range []string{"0s", "100µs"} {
		kase := "256 goroutines, hold " + hold
		add(kase+": throughput, beside gofrs every 10 ms", "goroutines", kase, ours, "throughput", gofrs10, 0.95)
		add(kase+": longest wait, beside the same", "goroutines", kase, ours, "longest wait", gofrs10, 3)
	}
	for _, hold := range []string{"0s", "100µs"} {
		kase := "64 goroutines, hold " + hold
		add("another process beside "+kase+": grants in 2 s", "foreign", kase, ours, "grants to the other in 2 s", "", 200)
		add("another process beside "+kase+": longest wait", "foreign", kase, ours, "its longest wait", "", 100*ms)
	}
	for _, mix := range []struct {
		name  string
		limit float64
	}{{"50:50", 0.95}, {"99:1", 1}} {
		kase := mix.name + ", 4 processes with 16 goroutines each"
		add(kase+": read throughput, beside flock(2)", "readwrite", kase, oursKept, "read throughput", bare, mix.limit)
	}
	add("Fair, a writer beside readers of 3 processes: longest wait to write", "fair", fairWriter, oursFair, "longest wait to write", "", 100*ms)
	add("Fair, 16 writers: longest wait", "fair", fairWriters, oursFair, "longest wait to write", "", 100*ms)
	add("Fair, 16 writers: throughput, beside flockctx without", "fair", fairWriters, oursFair, "throughput", oursKept, 0.8)
	add("Fair, 99:1: longest wait to write", "fair", fairMixed, oursFair, "longest wait to write", "", 100*ms)
	add("Fair, 99:1: throughput, beside flockctx without", "fair", fairMixed, oursFair, "throughput", oursKept, 0.8)
	add("Fair, uncontended: throughput, beside flockctx without", "fair", fairAlone, oursFair, "throughput", oursKept, 0.67)
	few, hundred, many, most, one := "10 waiters on 10 files", "100 waiters on 100 files", "3000 waiters on 3000 files", "10000 waiters on 10000 files", "100 waiters on one file"
	add(few+": memory each, beside gofrs every 10 ms", "waiters", few, ours, "memory each", gofrs10, 1)
	add(hundred+": memory each, beside gofrs every 10 ms", "waiters", hundred, ours, "memory each", gofrs10, 1)
	add(hundred+": all cancelled", "waiters", hundred, ours, "all cancelled", "", 1*ms)
	add(many+": threads", "waiters", many, ours, "threads", "", 200)
	add(many+": CPU", "waiters", many, ours, "CPU", "", 5)
	add(many+": memory each", "waiters", many, ours, "memory each", "", 8192)
	add(many+": all cancelled", "waiters", many, ours, "all cancelled", "", 500*ms)
	add(most+": CPU", "waiters", most, ours, "CPU", "", 2)
	add(most+": memory each", "waiters", most, ours, "memory each", "", 4096)
	add(one+": CPU (10 ms in 3 s)", "waiters", one, ours, "CPU", "", 1.0/3)
	add(one+": threads", "waiters", one, ours, "threads", "", 20)
	return t
}

// A verdict is a target that was measured.
type verdict struct {
	target
	got  ratio
	unit string
	met  bool
}

func (r *record) verdicts() (list []verdict) {
	for _, t := range r.targets() {
		c := r.find(t.scenario, t.kase, t.cand, t.metric)
		if c == nil || len(known(c.Rounds)) == 0 {
			continue
		}
		v := verdict{target: t}
		if t.other == "" {
			rounds := known(c.Rounds)
			v.got, v.unit = ratio{median(rounds), slices.Min(rounds), slices.Max(rounds)}, c.Unit
			v.met = v.got.mid <= t.limit
			if better[t.metric] {
				v.met = v.got.mid >= t.limit
			}
		} else if o := r.find(t.scenario, t.kase, t.other, t.metric); o != nil && len(known(o.Rounds)) > 0 {
			v.got = times(c, o)
			v.met = v.got.mid >= t.limit
		} else {
			continue
		}
		list = append(list, v)
	}
	return list
}

func (r *record) writeTargets(out io.Writer) {
	fmt.Fprint(out, "# Targets\n\nWhat flockctx wants to reach, and what the run of [the summary](README.md) has measured. Beside another candidate: "+
		"how many times better flockctx is (above 1 it is better), the median of the rounds, and in brackets the least and the greatest of them. "+
		"Else the figure itself.\n\n| | target | measured | |\n|---|--:|--:|---|\n")
	for _, v := range r.verdicts() {
		sign, word := "≤", "reached"
		if v.other != "" || better[v.metric] {
			sign = "≥"
		}
		if !v.met {
			word = "**missed**"
		}
		fmt.Fprintf(out, "| %s | %s %s | %s (%s–%s) | %s |\n", v.text, sign, format(v.limit, v.unit),
			format(v.got.mid, v.unit), format(v.got.min, v.unit), format(v.got.max, v.unit), word)
	}
}
