//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"
)

// direction is said wherever there are ratios.
const direction = "In brackets: how many times better flockctx is, so below 1 it is worse. For a time, that is the other's time divided by flockctx's."

// A headline is a row of the summary: one figure, for the candidates of the columns.
type headline struct {
	text, scenario, kase, metric string
	ours                         string // flockctx in which way of use
}

// labels are the candidates' names where there is no legend.
var labels = map[string]string{
	oursKept:  "flockctx, kept open",
	oursPoll:  "flockctx, polling",
	oursSlot:  "flockctx, a semaphore's slot",
	oursFair:  "flockctx, Fair",
	gofrs1:    "gofrs/flock, every 1 ms",
	gofrs10:   "gofrs/flock, every 10 ms",
	gofrsStat: "gofrs/flock and a stat",
	gofrsBlk:  "gofrs/flock, blocking",
	locked:    "Go's lockedfile",
	fmutex:    "alexflint/go-filemutex",
	fsl:       "juju/fslock",
	bare:      "flock(2) from Go",
	bareStat:  "flock(2), stat from Go",
	bareC:     "flock(2) from C",
}

func label(cand string) string {
	if l := labels[cand]; l != "" {
		return l
	}
	return cand
}

// writeSummary writes the table of the results that the project's README has too.
func (r report) writeSummary(out io.Writer) {
	path, kept := r.uncontendedCases()
	rows := []headline{
		{"lock and release by path", "uncontended", path, "lock and release", ours},
		{"lock and release, file kept open", "uncontended", kept, "lock and release", oursKept},
		{"2 processes take turns: from release to the next grant", "handover", "2 processes", "p50", oursKept},
		{"4 processes come back at once, 5 µs each: throughput", "processes", "4 processes, 5 µs", "throughput", oursKept},
		{"the same: CPU time of a grant", "processes", "4 processes, 5 µs", "CPU per grant", oursKept},
		{"from cancel to return", "cancel", "another process holds it", "p50", oursKept},
		{"256 goroutines, 100 µs each: throughput", "goroutines", "256 goroutines, hold 100µs", "throughput", ours},
		{"the same: longest wait", "goroutines", "256 goroutines, hold 100µs", "longest wait", ours},
		{"the same: CPU time of a grant", "goroutines", "256 goroutines, hold 100µs", "CPU per grant", ours},
		{"another process beside 64 goroutines: its longest wait", "foreign", "64 goroutines, hold 100µs", "its longest wait", ours},
		{"1000 waiters on 1000 files: CPU, of a core", "waiters", "1000 waiters on 1000 files", "CPU", ours},
		{"the same: threads", "waiters", "1000 waiters on 1000 files", "threads", ours},
	}
	columns := []string{gofrs10, gofrs1, locked, bare}
	head := false
	for _, h := range rows {
		rec := r[h.scenario]
		o := rec.find(h.kase, h.ours, h.metric)
		if o == nil || math.IsNaN(median(o.Rounds)) {
			continue
		}
		if !head {
			head = true
			fmt.Fprintf(out, "Medians, all libraries in one run, taking turns. %s A dash: it cannot be done, or was not tried.\n\n", direction)
			fmt.Fprint(out, "| | flockctx |")
			for _, c := range columns {
				fmt.Fprintf(out, " %s |", label(c))
			}
			fmt.Fprintf(out, "\n|---|--:|%s\n", strings.Repeat("--:|", len(columns)))
		}
		fmt.Fprintf(out, "| %s | %s |", h.text, format(median(o.Rounds), o.Unit))
		for _, cand := range columns {
			c := rec.find(h.kase, cand, h.metric)
			if c == nil || math.IsNaN(median(c.Rounds)) {
				fmt.Fprint(out, " – |")
				continue
			}
			text := format(median(c.Rounds), c.Unit)
			if q := advantage(o, c).mid; !math.IsNaN(q) {
				text += " (" + short(q) + ")"
			}
			fmt.Fprintf(out, " %s |", text)
		}
		fmt.Fprintln(out)
	}
}

// The marks in the project's README between which the summary stands.
const (
	figuresBegin = "<!-- figures: written by the bench, from bench/results -->\n"
	figuresEnd   = "<!-- end of figures -->\n"
)

// figures returns what stands between the marks.
func (r report) figures() string {
	var b strings.Builder
	b.WriteString("\n")
	r.writeSummary(&b)
	b.WriteString("\n" + r.where() + "\n\n")
	return b.String()
}

// insertFigures returns text with the figures of r between the marks.
func (r report) insertFigures(text string) (string, error) {
	before, rest, ok := strings.Cut(text, figuresBegin)
	_, after, ok2 := strings.Cut(rest, figuresEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("no %q … %q", figuresBegin, figuresEnd)
	}
	return before + figuresBegin + r.figures() + figuresEnd + after, nil
}

// quote puts the summary into the file name, between its marks.
func (r report) quote(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	s, err := r.insertFigures(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return os.WriteFile(name, []byte(s), 0o644)
}
