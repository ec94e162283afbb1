//go:build linux

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// A growth is a table of one figure against the size of the case.
type growth struct {
	scenario, metric string
	suffix           string // of the cases, after the size
}

var growths = []growth{
	{"handover", "p50", " processes"},
	{"handover", "p99", " processes"},
	{"goroutines", "throughput", " goroutines, hold 0s"},
	{"goroutines", "longest wait", " goroutines, hold 0s"},
	{"goroutines", "throughput", " goroutines, hold 100µs"},
	{"goroutines", "longest wait", " goroutines, hold 100µs"},
	{"goroutines", "CPU per grant", " goroutines, hold 100µs"},
	{"foreign", "its longest wait", " goroutines, hold 100µs"},
	{"waiters", "CPU", " files"},
	{"waiters", "threads", " files"},
	{"waiters", "memory each", " files"},
	{"waiters", "all cancelled", " files"},
}

// writeGrowths writes how the candidates grow with the size of a scenario.
func (r *record) writeGrowths(out io.Writer, scenario string) {
	for _, g := range growths {
		if g.scenario != scenario {
			continue
		}
		var cases, cands []string
		for _, c := range r.Cells {
			if c.Scenario != scenario || c.Metric != g.metric || !strings.HasSuffix(c.Case, g.suffix) {
				continue
			}
			if !slices.Contains(cases, c.Case) {
				cases = append(cases, c.Case)
			}
			if !slices.Contains(cands, c.Cand) {
				cands = append(cands, c.Cand)
			}
		}
		if len(cases) < 2 {
			continue
		}
		fmt.Fprintf(out, "\n**%s** against the number of%s:\n\n| |", g.metric, strings.TrimSuffix(g.suffix, " files")+map[bool]string{true: " waiters, each on its file"}[scenario == "waiters"])
		for _, k := range cases {
			size, _, _ := strings.Cut(k, " ")
			fmt.Fprintf(out, " %s |", size)
		}
		fmt.Fprintf(out, "\n|---|%s\n", strings.Repeat("--:|", len(cases)))
		for _, cand := range cands {
			fmt.Fprintf(out, "| %s |", cand)
			for _, k := range cases {
				if c := r.find(scenario, k, cand, g.metric); c != nil {
					fmt.Fprintf(out, " %s |", format(median(c.Rounds), c.Unit))
				} else {
					fmt.Fprint(out, " – |")
				}
			}
			fmt.Fprintln(out)
		}
	}
}
