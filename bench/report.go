//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// files returns all that is made from the records: name to content.
func (r report) files() map[string]string {
	m := map[string]string{"README.md": r.page()}
	for _, s := range scenarios {
		if r[s.name] != nil {
			m[s.name+".md"] = r.scenarioPage(s)
		}
	}
	for _, p := range pictures {
		if svg := p.draw(r); svg != "" {
			m[p.name+".svg"] = svg
		}
	}
	return m
}

// write writes the report into dir, where its records are.
func (r report) write(dir string) error {
	for name, text := range r.files() {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// where says on what machine the records were made, when, and what else it did.
func (r report) where() string {
	var machines, notes []string
	var first, last *record
	idle := 1.0
	for _, s := range scenarios {
		rec := r[s.name]
		if rec == nil {
			continue
		}
		if m := strings.Join(rec.Machine, ", "); !slices.Contains(machines, m) {
			machines = append(machines, m)
		}
		for _, n := range rec.Notes {
			if !slices.Contains(notes, n) {
				notes = append(notes, n)
			}
		}
		if first == nil || rec.Started.Before(first.Started) {
			first = rec
		}
		if last == nil || rec.Finished.After(last.Finished) {
			last = rec
		}
		idle = min(idle, rec.Idle)
	}
	if first == nil {
		return ""
	}
	const day, minute = "2 January 2006", "15:04"
	from, to := first.Started.UTC(), last.Finished.UTC()
	end := to.Format(minute)
	if from.Format(day) != to.Format(day) {
		end = to.Format(day + ", " + minute)
	}
	text := fmt.Sprintf("%s. Measured on %s to %s UTC. In the second before each scenario the processors were idle for at least %.0f %% of the time.",
		strings.Join(machines, "; "), from.Format(day+", "+minute), end, 100*idle)
	for _, n := range notes {
		text += " " + strings.ToUpper(n[:1]) + n[1:] + "."
	}
	return text
}

// page returns the first page: what everybody reads.
func (r report) page() string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "# flockctx beside its peers\n\n## In short\n\n")
	r.writeSummary(&out)
	fmt.Fprintf(&out, "\n%s\n", r.where())
	r.writeTargets(&out)
	fmt.Fprintf(&out, "\nEach page has all figures, with their spread and the state of the machine, and where others are better.\n")
	for _, p := range pictures {
		if p.front && p.draw(r) != "" {
			fmt.Fprintf(&out, "\n[![%s](%s.svg)](%s.md)\n", p.title, p.name, p.scenario)
		}
	}
	return out.String()
}

// scenarioPage returns the page of s.
func (r report) scenarioPage(s scenario) string {
	var out bytes.Buffer
	rec := r[s.name]
	fmt.Fprintf(&out, "# %s\n\n%s\n", s.title, s.about)
	for _, p := range pictures {
		if p.scenario == s.name && p.draw(r) != "" {
			fmt.Fprintf(&out, "\n![%s](%s.svg)\n", p.title, p.name)
		}
	}
	fmt.Fprintf(&out, "\nEach cell has the median of the rounds. After it, times flockctx's time, so above 1 flockctx is better (of what is better when greater, flockctx's figure as a multiple of the other's): "+
		"the median of the ratios within each round and, in brackets, the least and the greatest of them. **Bold** where flockctx is worse by more than 5 %%. "+
		"Who keeps the file open is compared with flockctx kept, who does not with flockctx, as far as both were measured. "+
		"A quantile is there only where ten samples of a round are beyond it: p99 needs 1000, p90 100, p50 20.\n")
	r.writeVerdicts(&out, s.name)
	rec.writeLosses(&out)
	for _, kase := range rec.cases() {
		rec.writeTable(&out, kase)
	}
	rec.writeLegend(&out)
	fmt.Fprintf(&out, "\n## The run\n\nOn %s, in %.0f seconds:\n\n", rec.Started.UTC().Format("2 January 2006, 15:04 UTC"), rec.Finished.Sub(rec.Started).Seconds())
	for _, line := range slices.Concat(rec.Machine, []string{
		fmt.Sprintf("processors idle for %.0f %% of the second before; %.1f %% of the run taken away by the host", 100*rec.Idle, 100*rec.Stolen),
		"load averages before " + rec.LoadBefore + ", after " + rec.LoadAfter}, rec.Peers, rec.Notes) {
		fmt.Fprintf(&out, "- %s\n", line)
	}
	if rec.Quick {
		fmt.Fprint(&out, "- a quick run: fewer candidates, and fewer or shorter rounds\n")
	}
	fmt.Fprintf(&out, "\nAll rounds are in [%s.json](%[1]s.json); `go run . -run %[1]s -out results` in bench/ repeats it.\n", s.name)
	return out.String()
}

func (r *record) cases() (names []string) {
	for _, c := range r.Cells {
		if !slices.Contains(names, c.Case) {
			names = append(names, c.Case)
		}
	}
	return names
}

// greaterIsBetter has the metrics of which that is so.
var greaterIsBetter = map[string]bool{"throughput": true, "throughput here": true, "grants to the other in 2 s": true,
	"read throughput": true, "write throughput": true}

// noRatio has the metrics that are neither good nor bad.
var noRatio = map[string]bool{"samples": true}

func (r *record) writeTable(out io.Writer, kase string) {
	var cands, metrics []string
	for _, c := range r.Cells {
		if c.Case != kase {
			continue
		}
		if !slices.Contains(cands, c.Cand) {
			cands = append(cands, c.Cand)
		}
		if !slices.Contains(metrics, c.Metric) {
			metrics = append(metrics, c.Metric)
		}
	}
	fmt.Fprintf(out, "\n## %s\n\n| |", kase)
	for _, m := range metrics {
		fmt.Fprintf(out, " %s |", m)
	}
	fmt.Fprintf(out, "\n|---|%s\n", strings.Repeat("--:|", len(metrics)))
	for _, cand := range cands {
		fmt.Fprintf(out, "| %s |", cand)
		for _, m := range metrics {
			c := r.find(kase, cand, m)
			if c == nil || math.IsNaN(median(c.Rounds)) {
				fmt.Fprint(out, " – |")
				continue
			}
			text := format(median(c.Rounds), c.Unit)
			if ref := r.reference(c); ref != nil {
				text += " · " + advantage(ref, c).markdown()
			}
			fmt.Fprintf(out, " %s |", text)
		}
		fmt.Fprintln(out)
	}
}

// reference returns the cell of flockctx that c is compared with, or nil. Like with like:
// who keeps the file open is compared with who does.
func (r *record) reference(c *cell) *cell {
	if noRatio[c.Metric] {
		return nil
	}
	for _, name := range []string{oursFair, slotsOurs} { // which are at issue where they are
		if ref := r.find(c.Case, name, c.Metric); ref == c {
			return nil
		} else if ref != nil {
			return ref
		}
	}
	byPath, kept := r.find(c.Case, ours, c.Metric), r.find(c.Case, oursKept, c.Metric)
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
func (r *record) writeLosses(out io.Writer) {
	type loss struct {
		cases    int
		min, max float64
	}
	losses := make(map[[2]string]*loss)
	of := make(map[[2]string]int)
	var metrics, cands []string
	for _, c := range r.Cells {
		ref := r.reference(c)
		if ref == nil || strings.HasPrefix(c.Cand, ours) {
			continue
		}
		if !slices.Contains(cands, c.Cand) {
			cands = append(cands, c.Cand)
		}
		key := [2]string{c.Metric, c.Cand}
		of[key]++
		q := advantage(ref, c).mid
		if !(q < 0.95) {
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
	fmt.Fprintf(out, "\n## Where others are better\n\n")
	if len(metrics) == 0 {
		fmt.Fprintf(out, "By more than 5 %%: nowhere.\n")
		return
	}
	fmt.Fprintf(out, "By more than 5 %%, with the ratio or its range (below 1):\n\n")
	for _, m := range metrics {
		var items []string
		for _, c := range cands {
			key := [2]string{m, c}
			l := losses[key]
			if l == nil {
				continue
			}
			text := short(l.min)
			if short(l.max) != text {
				text += "–" + short(l.max)
			}
			items = append(items, fmt.Sprintf("%s in %d of %d cases (%s)", c, l.cases, of[key], text))
		}
		fmt.Fprintf(out, "- %s: %s\n", m, strings.Join(items, ", "))
	}
}

// writeLegend says what the candidates of r do.
func (r *record) writeLegend(out io.Writer) {
	head := false
	for _, c := range candidates {
		if !slices.ContainsFunc(r.Cells, func(o *cell) bool { return o.Cand == c.name }) {
			continue
		}
		if !head {
			head = true
			fmt.Fprintf(out, "\n## Candidates\n\n| name | what it does |\n|---|---|\n")
		}
		fmt.Fprintf(out, "| %s | %s |\n", c.name, c.how)
	}
}
