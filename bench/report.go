//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// write writes the report in Markdown, with links to the pictures that plot draws.
func (r *record) write(w io.Writer, pictures bool) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "# flockctx beside its peers\n\n")
	fmt.Fprintf(out, "Measured on %s, in %.0f minutes:\n\n", r.Started.UTC().Format("2 January 2006, 15:04 UTC"), r.Finished.Sub(r.Started).Minutes())
	for _, line := range r.Machine {
		fmt.Fprintf(out, "- %s\n", line)
	}
	fmt.Fprintf(out, "- load average at the end %s\n", r.Load)
	for _, line := range r.Notes {
		fmt.Fprintf(out, "- %s\n", line)
	}
	fmt.Fprintf(out, "\nEach cell has the median over all rounds and flockctx's value divided by the candidate's (in a way of use that keeps the file open: that of flockctx kept): "+
		"the median of the ratios within each round and, in brackets, the least and the greatest of them. **Bold** where flockctx is worse by more than 5 %%.\n")
	r.writeSummary(out)
	r.writeTargets(out)
	for _, name := range r.Scenarios {
		i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
		s := scenarios[i]
		fmt.Fprintf(out, "\n## %s\n\n%s\n", s.title, s.about)
		if pictures {
			names := []string{name}
			if name == "goroutines" {
				names = append(names, "waits")
			}
			for _, n := range names {
				fmt.Fprintf(out, "\n![%s](%s.svg)\n", s.title, n)
			}
		}
		r.writeLosses(out, name)
		r.writeGrowths(out, name)
		for _, kase := range r.cases(name) {
			r.writeTable(out, name, kase)
		}
	}
	fmt.Fprintf(out, "\n## Candidates\n\n| name | what it does |\n|---|---|\n")
	for _, c := range candidates {
		fmt.Fprintf(out, "| %s | %s |\n", c.name, c.how)
	}
	return out.Flush()
}

func (r *record) cases(scenario string) (names []string) {
	for _, c := range r.Cells {
		if c.Scenario == scenario && !slices.Contains(names, c.Case) {
			names = append(names, c.Case)
		}
	}
	return names
}

// better says which metrics are better when greater.
var better = map[string]bool{"throughput": true, "throughput here": true, "grants to the other in 2 s": true,
	"read throughput": true, "write throughput": true}

func (r *record) writeTable(out io.Writer, scenario, kase string) {
	var cands, metrics []string
	for _, c := range r.Cells {
		if c.Scenario == scenario && c.Case == kase {
			if !slices.Contains(cands, c.Cand) {
				cands = append(cands, c.Cand)
			}
			if !slices.Contains(metrics, c.Metric) {
				metrics = append(metrics, c.Metric)
			}
		}
	}
	fmt.Fprintf(out, "\n### %s\n\n| |", kase)
	for _, m := range metrics {
		fmt.Fprintf(out, " %s |", m)
	}
	fmt.Fprintf(out, "\n|---|%s\n", strings.Repeat("--:|", len(metrics)))
	for _, cand := range cands {
		fmt.Fprintf(out, "| %s |", cand)
		for _, m := range metrics {
			c := r.find(scenario, kase, cand, m)
			if c == nil {
				fmt.Fprint(out, " – |")
				continue
			}
			text := format(median(c.Rounds), c.Unit)
			if ref := r.reference(c); ref != nil {
				text += " · " + ratioOf(ref.Rounds, c.Rounds).markdown(better[m])
			}
			fmt.Fprintf(out, " %s |", text)
		}
		fmt.Fprintln(out)
	}
}

// reference returns the cell of flockctx that c is compared with, or nil. Like with like:
// who keeps the file open is compared with who does.
func (r *record) reference(c *cell) *cell {
	byPath, kept := r.find(c.Scenario, c.Case, ours, c.Metric), r.find(c.Scenario, c.Case, oursKept, c.Metric)
	ref := byPath
	if byPath == nil || kept != nil && find(c.Cand).keeps && c.Cand != oursKept {
		ref = kept
	}
	if ref == c {
		return nil
	}
	return ref
}

// writeLosses says by how much which candidates are better than flockctx.
func (r *record) writeLosses(out io.Writer, scenario string) {
	type loss struct {
		cases    int
		min, max float64
	}
	losses := make(map[[2]string]*loss)
	of := make(map[[2]string]int)
	var metrics []string
	for _, c := range r.Cells {
		if c.Scenario != scenario || strings.HasPrefix(c.Cand, ours) {
			continue
		}
		ref := r.reference(c)
		if ref == nil {
			continue
		}
		q := ratioOf(ref.Rounds, c.Rounds).mid
		if better[c.Metric] {
			q = 1 / q
		}
		key := [2]string{c.Metric, c.Cand}
		of[key]++
		if !(q > 1.05) || math.IsInf(q, 0) {
			continue
		}
		if !slices.Contains(metrics, c.Metric) {
			metrics = append(metrics, c.Metric)
		}
		l := losses[key]
		if l == nil {
			l = &loss{0, q, q}
			losses[key] = l
		}
		l.cases++
		l.min, l.max = min(l.min, q), max(l.max, q)
	}
	if len(metrics) == 0 {
		fmt.Fprintf(out, "\nNo candidate is better here than flockctx by more than 5 %%.\n")
		return
	}
	fmt.Fprintf(out, "\nBetter here than flockctx by more than 5 %%, and how many times:\n\n")
	for _, m := range metrics {
		var items []string
		for _, c := range candidates {
			key := [2]string{m, c.name}
			l := losses[key]
			if l == nil {
				continue
			}
			text := short(l.min)
			if short(l.max) != text {
				text += "–" + short(l.max)
			}
			items = append(items, fmt.Sprintf("%s in %d of %d cases (%s)", c.name, l.cases, of[key], text))
		}
		fmt.Fprintf(out, "- %s: %s\n", m, strings.Join(items, ", "))
	}
}

// save writes the report and its data into dir.
func (b *bench) save(dir string) error {
	data, err := json.Marshal(b.record)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "data.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return b.saveReport(dir)
}

// A target is what flockctx wants to reach, as a ratio within one run where that is
// possible.
type target struct {
	text           string
	scenario, kase string
	cand, metric   string
	other          string // "": limit is absolute
	limit          float64
	atLeast        bool
}

func (r *record) targets() []target {
	path, kept := r.uncontendedCases()
	const us, ms = 1e3, 1e6
	t := []target{
		{text: "Lock and Close by path / gofrs TryLockContext and Unlock", scenario: "uncontended", kase: path, cand: ours, metric: "lock and release", other: gofrs10, limit: 0.95},
		{text: "Lock and Close by path / the same and the path compared after the grant", scenario: "uncontended", kase: path, cand: ours, metric: "lock and release", other: gofrsStat, limit: 0.95},
		{text: "Lock and Close by path / open, flock, close", scenario: "uncontended", kase: path, cand: ours, metric: "lock and release", other: bare, limit: 1.8},
		{text: "Lock and Close by path / the six system calls of a verified lock", scenario: "uncontended", kase: path, cand: ours, metric: "lock and release", other: bareStat, limit: 1.1},
		{text: "Lock and Unlock on a kept handle / gofrs", scenario: "uncontended", kase: kept, cand: oursKept, metric: "lock and release", other: gofrs10, limit: 0.45},
		{text: "Lock and Unlock on a kept handle / two flock calls and a stat", scenario: "uncontended", kase: kept, cand: oursKept, metric: "lock and release", other: bareStat, limit: 1.15},
	}
	for _, n := range []string{"2", "4", "16"} {
		t = append(t,
			target{text: "hand-over between " + n + " processes / flock(2), p50", scenario: "handover", kase: n + " processes", cand: oursKept, metric: "p50", other: bare, limit: 1.15},
			target{text: "hand-over between " + n + " processes / flock(2), p99", scenario: "handover", kase: n + " processes", cand: oursKept, metric: "p99", other: bare, limit: 1.5})
	}
	t = append(t,
		target{text: "hand-over within the process, 16 goroutines, p50", scenario: "goroutines", kase: "16 goroutines, hold 0s", cand: oursKept, metric: "hand-over p50", limit: 2 * us},
		target{text: "cancel to return, in the kernel, p50", scenario: "cancel", kase: "another process holds it", cand: oursKept, metric: "p50", limit: 150 * us},
		target{text: "cancel to return, in the kernel, p99", scenario: "cancel", kase: "another process holds it", cand: oursKept, metric: "p99", limit: 1 * ms},
		target{text: "cancel to return, parked, p50", scenario: "cancel", kase: "parked", cand: oursKept, metric: "p50", limit: 150 * us},
		target{text: "cancel to return, parked, p99", scenario: "cancel", kase: "parked", cand: oursKept, metric: "p99", limit: 1 * ms},
		target{text: "cancel to return, polling, p50", scenario: "cancel", kase: "another process holds it", cand: oursPoll, metric: "p50", limit: 150 * us},
		target{text: "cancel to return, polling, p99", scenario: "cancel", kase: "another process holds it", cand: oursPoll, metric: "p99", limit: 1 * ms})
	for _, hold := range []string{"0s", "100µs"} {
		kase := "256 goroutines, hold " + hold
		t = append(t,
			target{text: kase + ": throughput / gofrs polling every 10 ms", scenario: "goroutines", kase: kase, cand: ours, metric: "throughput", other: gofrs10, limit: 0.95, atLeast: true},
			target{text: kase + ": longest wait / gofrs polling every 10 ms", scenario: "goroutines", kase: kase, cand: ours, metric: "longest wait", other: gofrs10, limit: 0.33})
	}
	for _, hold := range []string{"0s", "100µs"} {
		kase := "64 goroutines, hold " + hold
		t = append(t,
			target{text: "another process beside " + kase + ": grants in 2 s", scenario: "foreign", kase: kase, cand: ours, metric: "grants to the other in 2 s", limit: 200, atLeast: true},
			target{text: "another process beside " + kase + ": longest wait", scenario: "foreign", kase: kase, cand: ours, metric: "its longest wait", limit: 100 * ms})
	}
	many, most, one := "3000 waiters on 3000 files", "10000 waiters on 10000 files", "100 waiters on one file"
	return append(t,
		target{text: many + ": threads", scenario: "waiters", kase: many, cand: ours, metric: "threads", limit: 200},
		target{text: many + ": CPU", scenario: "waiters", kase: many, cand: ours, metric: "CPU", limit: 5},
		target{text: many + ": memory each", scenario: "waiters", kase: many, cand: ours, metric: "memory each", limit: 8192},
		target{text: many + ": all cancelled", scenario: "waiters", kase: many, cand: ours, metric: "all cancelled", limit: 500 * ms},
		target{text: most + ": CPU", scenario: "waiters", kase: most, cand: ours, metric: "CPU", limit: 2},
		target{text: most + ": memory each", scenario: "waiters", kase: most, cand: ours, metric: "memory each", limit: 4096},
		target{text: one + ": CPU (10 ms in 3 s)", scenario: "waiters", kase: one, cand: ours, metric: "CPU", limit: 1.0 / 3},
		target{text: one + ": threads", scenario: "waiters", kase: one, cand: ours, metric: "threads", limit: 20})
}

func (r *record) writeTargets(out io.Writer) {
	head := false
	for _, t := range r.targets() {
		c := r.find(t.scenario, t.kase, t.cand, t.metric)
		if c == nil {
			continue
		}
		var got ratio
		unit := ""
		if t.other == "" {
			got = ratio{median(c.Rounds), slices.Min(c.Rounds), slices.Max(c.Rounds)}
			unit = c.Unit
		} else {
			o := r.find(t.scenario, t.kase, t.other, t.metric)
			if o == nil {
				continue
			}
			got = ratioOf(c.Rounds, o.Rounds)
		}
		if !head {
			head = true
			fmt.Fprintf(out, "\n## Targets\n\n| | target | measured: median (least–greatest round) | |\n|---|--:|--:|---|\n")
		}
		sign, met := "≤", got.mid <= t.limit
		if t.atLeast {
			sign, met = "≥", got.mid >= t.limit
		}
		verdict := "reached"
		if !met {
			verdict = "**missed**"
		}
		fmt.Fprintf(out, "| %s | %s %s | %s (%s–%s) | %s |\n", t.text, sign, format(t.limit, unit),
			format(got.mid, unit), format(got.min, unit), format(got.max, unit), verdict)
	}
}

// saveReport writes the report into dir.
func (r *record) saveReport(dir string) error {
	f, err := os.Create(filepath.Join(dir, "README.md"))
	if err != nil {
		return err
	}
	defer f.Close()
	return r.write(f, true)
}

// rewrite writes the report in dir anew from the data there.
func rewrite(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "data.json"))
	if err != nil {
		return err
	}
	r := new(record)
	if err := json.Unmarshal(text, r); err != nil {
		return err
	}
	return r.saveReport(dir)
}
