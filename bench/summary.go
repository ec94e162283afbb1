//go:build linux

package main

import (
	"fmt"
	"math"
	"strings"
)

// A headline is a row of the summary: one figure, for the candidates of the columns.
type headline struct {
	text, scenario, kase, metric string
	ours                         string // flockctx in which way of use
}

// writeSummary returns the summary and how it is to be read.
func (r *record) writeSummary() string {
	table := r.summaryTable()
	if table == "" {
		return howToRead
	}
	return "## In short\n\nMedians, and in brackets **how many times better flockctx is: above 1 flockctx is better, below 1 the other one.** " +
		"It is the median of the ratios within each round. The longest waits are within runs of 1.5 s and 2 s. A dash: it cannot be cancelled.\n\n" + table
}

// summaryTable returns the table that the project's README has too.
func (r *record) summaryTable() string {
	var out strings.Builder
	path, kept := r.uncontendedCases()
	rows := []headline{
		{"lock and release by path", "uncontended", path, "lock and release", ours},
		{"lock and release, file kept open", "uncontended", kept, "lock and release", oursKept},
		{"2 processes: from release to the next grant", "handover", "2 processes", "p50", oursKept},
		{"16 processes: from release to the next grant", "handover", "16 processes", "p50", oursKept},
		{"4 processes that lock for 5 µs again and again: throughput", "processes", "4 processes, section 5µs", "throughput", oursKept},
		{"the same: longest wait", "processes", "4 processes, section 5µs", "longest wait", oursKept},
		{"from cancel to return", "cancel", "another process holds it", "p50", oursKept},
		{"256 goroutines, 100 µs each: throughput", "goroutines", "256 goroutines, hold 100µs", "throughput", ours},
		{"the same: longest wait", "goroutines", "256 goroutines, hold 100µs", "longest wait", ours},
		{"another process beside 64 goroutines, 100 µs each: its longest wait", "foreign", "64 goroutines, hold 100µs", "its longest wait", ours},
		{"1000 waiters on 1000 files: CPU, of a core", "waiters", "1000 waiters on 1000 files", "CPU", ours},
		{"the same: threads", "waiters", "1000 waiters on 1000 files", "threads", ours},
	}
	columns := []string{gofrs1, gofrs10, locked, bare}
	names := []string{"gofrs/flock, every 1 ms", "gofrs/flock, every 10 ms", "Go's lockedfile", "flock(2) from Go"}
	for _, h := range rows {
		o := r.find(h.scenario, h.kase, h.ours, h.metric)
		if o == nil {
			continue
		}
		if out.Len() == 0 {
			fmt.Fprintf(&out, "| | flockctx | %s |\n|---|--:|%s\n", strings.Join(names, " | "), strings.Repeat("--:|", len(columns)))
		}
		fmt.Fprintf(&out, "| %s | %s |", h.text, format(median(o.Rounds), o.Unit))
		for _, cand := range columns {
			c := r.find(h.scenario, h.kase, cand, h.metric)
			if c == nil {
				fmt.Fprint(&out, " – |")
				continue
			}
			text := format(median(c.Rounds), c.Unit)
			if q := times(o, c).mid; !math.IsNaN(q) {
				text += " (" + short(q) + ")"
			}
			fmt.Fprintf(&out, " %s |", text)
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

// uncontendedCases returns the names of the first cases of that scenario: those on a disk.
func (r *record) uncontendedCases() (path, kept string) {
	for _, c := range r.Cells {
		if disk, ok := strings.CutPrefix(c.Case, "by path, exclusive, "); ok {
			return c.Case, "kept, exclusive, " + disk
		}
	}
	return "", ""
}
