//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// report returns the files of the report: one page in short, and one for each scenario.
func (r *record) report() map[string][]byte {
	files := make(map[string][]byte)
	page := func(name string, write func(io.Writer)) {
		var b bytes.Buffer
		write(&b)
		files[name] = b.Bytes()
	}
	page("README.md", r.writeIndex)
	page("targets.md", r.writeTargets)
	for _, s := range r.measured() {
		page(s.name+".md", func(w io.Writer) { r.writeScenario(w, s, true) })
		if svg := r.picture(s.name); svg != nil {
			files[s.name+".svg"] = svg
		}
	}
	return files
}

// measured returns the scenarios that the record has.
func (r *record) measured() (list []scenario) {
	for _, s := range scenarios {
		if slices.Contains(r.Scenarios, s.name) {
			list = append(list, s)
		}
	}
	return list
}

// write writes the scenarios as one text.
func (r *record) write(w io.Writer) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "%s\n", howToRead)
	for _, s := range r.measured() {
		r.writeScenario(out, s, false)
	}
	return out.Flush()
}

const howToRead = "Figures are medians over all rounds. After each stands how many times better flockctx is: " +
	"of times and costs the candidate's divided by flockctx's, of throughput and grants flockctx's divided by the candidate's. " +
	"**Above 1 flockctx is better.** It is the median of the ratios within each round; in brackets the least and the greatest."

func (r *record) writeIndex(out io.Writer) {
	fmt.Fprintf(out, "# flockctx beside its peers\n\n%s\n", r.writeSummary())
	met, missed := 0, 0
	for _, t := range r.verdicts() {
		if t.met {
			met++
		} else {
			missed++
		}
	}
	if met+missed > 0 {
		fmt.Fprintf(out, "\n**Targets:** %d of %d reached; which, and by how much the others are missed, is in [targets](targets.md).\n", met, met+missed)
	}
	fmt.Fprint(out, "\n## Scenarios\n\nEach with all its figures, their spread, and where a peer is better:\n\n")
	for _, s := range r.measured() {
		fmt.Fprintf(out, "- [%s](%s.md)\n", s.title, s.name)
	}
	for _, name := range []string{"goroutines", "handover", "waiters"} {
		if r.picture(name) != nil {
			fmt.Fprintf(out, "\n![%s](%s.svg)\n", pictures[name].title, name)
		}
	}
	fmt.Fprintf(out, "\n## The run\n\nMeasured from %s to %s UTC, on:\n\n", r.Started.UTC().Format("2 January 2006, 15:04"), r.Finished.UTC().Format("15:04"))
	for _, line := range r.Machine {
		fmt.Fprintf(out, "- %s\n", line)
	}
	fmt.Fprintf(out, "- load average at the end %s\n", r.Load)
	for _, line := range r.Notes {
		fmt.Fprintf(out, "- %s\n", line)
	}
	fmt.Fprint(out, "\nEvery figure of every round is in [data.json](data.json).\n")
}

func (r *record) writeScenario(out io.Writer, s scenario, own bool) {
	mark := "##"
	if own {
		mark = "#"
	}
	fmt.Fprintf(out, "\n%s %s\n\n%s\n", mark, s.title, s.about)
	if own {
		fmt.Fprintf(out, "\n%s **Bold** where it is worse by more than 5 %%. "+
			"Who keeps the file open is compared with flockctx kept, the others with flockctx by path. "+
			"A dash: cannot be had, or too few samples for that percentile (ten have to lie beyond it).\n", howToRead)
		if r.picture(s.name) != nil {
			fmt.Fprintf(out, "\n![%s](%s.svg)\n", pictures[s.name].title, s.name)
		}
	}
	r.writeLosses(out, s.name)
	r.writeGrowths(out, s.name)
	for _, kase := range r.cases(s.name) {
		r.writeTable(out, s.name, kase, mark+"#")
	}
	if !own {
		return
	}
	fmt.Fprintf(out, "\n## Candidates\n\n| name | what it does |\n|---|---|\n")
	for _, c := range candidates {
		if slices.ContainsFunc(r.Cells, func(x *cell) bool { return x.Scenario == s.name && x.Cand == c.name }) {
			fmt.Fprintf(out, "| %s | %s |\n", c.name, c.how)
		}
	}
	fmt.Fprint(out, "\nThe machine and the time of the run are in [the summary](README.md).\n")
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
	"read throughput": true, "write throughput": true, "writer's throughput": true}

// times returns how many times better than c ref is.
func times(ref, c *cell) ratio {
	if better[c.Metric] {
		return ratioOf(ref.Rounds, c.Rounds)
	}
	return ratioOf(c.Rounds, ref.Rounds)
}

func (r *record) writeTable(out io.Writer, scenario, kase, mark string) {
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
	fmt.Fprintf(out, "\n%s %s\n\n| |", mark, kase)
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
				if q := times(ref, c); !math.IsNaN(q.mid) {
					text += " · " + q.markdown()
				}
			}
			fmt.Fprintf(out, " %s |", text)
		}
		fmt.Fprintln(out)
	}
}

// reference returns the cell of flockctx that c is compared with, or nil. Like with like:
// who keeps the file open is compared with who does.
func (r *record) reference(c *cell) *cell {
	byPath, kept, fair := r.find(c.Scenario, c.Case, ours, c.Metric), r.find(c.Scenario, c.Case, oursKept, c.Metric), r.find(c.Scenario, c.Case, oursFair, c.Metric)
	ref := byPath
	if byPath == nil || kept != nil && find(c.Cand).keeps && c.Cand != oursKept {
		ref = kept
	}
	if fair != nil {
		ref = fair
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
		q := times(ref, c).mid
		if math.IsNaN(q) {
			continue
		}
		key := [2]string{c.Metric, c.Cand}
		of[key]++
		if q >= 0.95 {
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
	fmt.Fprintf(out, "\nWho is better here than flockctx by more than 5 %%:\n\n")
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

// save writes the data and the report into dir.
func (r *record) save(dir string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "data.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return r.saveReport(dir)
}

// saveReport writes the report into dir.
func (r *record) saveReport(dir string) error {
	for name, text := range r.report() {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// load reads the data in dir.
func readRecord(dir string) (*record, error) {
	text, err := os.ReadFile(filepath.Join(dir, "data.json"))
	if err != nil {
		return nil, err
	}
	r := new(record)
	return r, json.Unmarshal(text, r)
}

// merge takes from old the scenarios that r has not.
func (r *record) merge(old *record) {
	for _, s := range old.measured() {
		if slices.Contains(r.Scenarios, s.name) {
			continue
		}
		r.Scenarios = append(r.Scenarios, s.name)
		for _, c := range old.Cells {
			if c.Scenario == s.name {
				r.Cells = append(r.Cells, c)
			}
		}
	}
	r.Started = old.Started
}

// The table of the summary stands in the project's README between these lines.
const summaryBegin, summaryEnd = "<!-- bench: written by make bench -->\n", "<!-- bench ends -->"

// withSummary returns text with the summary in its place.
func (r *record) withSummary(text []byte) ([]byte, error) {
	before, rest, ok := bytes.Cut(text, []byte(summaryBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(summaryEnd))
	if !ok || !ok2 {
		return nil, fmt.Errorf("there is no place for the summary: %q", summaryBegin)
	}
	return slices.Concat(before, []byte(summaryBegin), []byte(r.summaryTable()), []byte(summaryEnd), after), nil
}

// publish writes the report of the data in dir anew, and its summary into the README.
func publish(dir, readme string) error {
	r, err := readRecord(dir)
	if err != nil {
		return err
	}
	if err := r.saveReport(dir); err != nil || readme == "" {
		return err
	}
	text, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	if text, err = r.withSummary(text); err != nil {
		return fmt.Errorf("%s: %w", readme, err)
	}
	return os.WriteFile(readme, text, 0o644)
}
