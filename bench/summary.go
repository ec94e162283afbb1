//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// A headline is a row of the summary: one figure, for the candidates of the columns.
type headline struct {
	text, scenario, kase, metric string
	ours                         string // flockctx in which way of use
}

// writeSummary writes the table that the project's README quotes.
func (r *record) writeSummary(out io.Writer) {
	path, kept := r.uncontendedCases()
	rows := []headline{
		{"lock and release by path", "uncontended", path, "lock and release", ours},
		{"lock and release, file kept open", "uncontended", kept, "lock and release", oursKept},
		{"2 processes: from release to the next grant, p50", "handover", "2 processes", "p50", oursKept},
		{"2 processes: from release to the next grant, p99", "handover", "2 processes", "p99", oursKept},
		{"16 processes: from release to the next grant, p50", "handover", "16 processes", "p50", oursKept},
		{"from cancel to return, p50", "cancel", "another process holds it", "p50", oursKept},
		{"256 goroutines, 100 µs each: throughput", "goroutines", "256 goroutines, hold 100µs", "throughput", ours},
		{"256 goroutines, 100 µs each: longest wait", "goroutines", "256 goroutines, hold 100µs", "longest wait", ours},
		{"another process beside 64 goroutines, 100 µs each: its grants in 2 s", "foreign", "64 goroutines, hold 100µs", "grants to the other in 2 s", ours},
		{"another process beside 64 goroutines, 100 µs each: its longest wait", "foreign", "64 goroutines, hold 100µs", "its longest wait", ours},
		{"1000 waiters on 1000 files: CPU", "waiters", "1000 waiters on 1000 files", "CPU", ours},
		{"1000 waiters on 1000 files: threads", "waiters", "1000 waiters on 1000 files", "threads", ours},
	}
	columns := []string{gofrs10, locked, fmutex, fsl, bare}
	head := false
	for _, h := range rows {
		o := r.find(h.scenario, h.kase, h.ours, h.metric)
		if o == nil {
			continue
		}
		if !head {
			head = true
			fmt.Fprintf(out, "\n## In short\n\nIn brackets: as a multiple of flockctx's, the median of the ratios within each round. "+
				"The longest waits are within runs of 1.5 s and 2 s. A dash: cannot be cancelled.\n\n")
			fmt.Fprintf(out, "| | flockctx | %s |\n|---|--:|%s\n", strings.Join(columns, " | "), strings.Repeat("--:|", len(columns)))
		}
		fmt.Fprintf(out, "| %s | %s |", h.text, format(median(o.Rounds), o.Unit))
		for _, cand := range columns {
			c := r.find(h.scenario, h.kase, cand, h.metric)
			if c == nil {
				fmt.Fprint(out, " – |")
				continue
			}
			text := format(median(c.Rounds), c.Unit)
			if q := ratioOf(c.Rounds, o.Rounds).mid; !math.IsNaN(q) {
				text += " (" + short(q) + ")"
			}
			fmt.Fprintf(out, " %s |", text)
		}
		fmt.Fprintln(out)
	}
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
