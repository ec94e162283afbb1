//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestQuantilesNeedTheirSamples(t *testing.T) {
	samples := make([]int64, 1000)
	for i := range samples {
		samples[i] = int64(1000 - i) // 1 to 1000
	}
	for _, c := range []struct {
		n    int
		q    float64
		want float64
	}{
		{1000, 0.99, 990}, {1000, 0.9, 900}, {1000, 0.5, 500},
		{999, 0.99, math.NaN()}, {100, 0.99, math.NaN()}, {100, 0.9, 90}, {99, 0.9, math.NaN()},
		{20, 0.5, 10}, {19, 0.5, math.NaN()}, {0, 0.5, math.NaN()},
	} {
		s := samples[1000-c.n:] // 1 to n
		if got := quantile(s, c.q); got != c.want && !(math.IsNaN(got) && math.IsNaN(c.want)) {
			t.Errorf("quantile %v of 1 to %d: %v, want %v", c.q, c.n, got, c.want)
		}
		var tl tally
		for _, v := range s {
			tl.add(v)
		}
		var h histogram
		h.addTally(&tl)
		got := h.quantile(c.q)
		if math.IsNaN(got) != math.IsNaN(c.want) || math.Abs(got-c.want) > c.want/32 {
			t.Errorf("quantile %v of a histogram of 1 to %d: %v, want %v", c.q, c.n, got, c.want)
		}
	}
}

func TestRatiosHaveOneDirection(t *testing.T) {
	ours, theirs := &cell{Metric: "p50", Rounds: figures{10, 10, 10}}, &cell{Metric: "p50", Rounds: figures{20, 30, math.NaN()}}
	if r := advantage(ours, theirs); r != (ratio{2.5, 2, 3}) {
		t.Errorf("who takes longer: %v", r)
	}
	ours.Metric, theirs.Metric = "throughput", "throughput"
	if r := advantage(ours, theirs); r.mid >= 1 {
		t.Errorf("who lets more through: %v", r)
	}
}

func TestRecordSurvivesItsFile(t *testing.T) {
	dir := t.TempDir()
	r := &record{Scenario: "cancel", Started: time.Unix(1e9, 0).UTC(), Machine: []string{"a"}}
	r.add("case", "flockctx", "p99", "ns", math.NaN())
	r.add("case", "flockctx", "p99", "ns", 12)
	r.add("case", "flockctx", "max", "ns", 13)
	if err := r.save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := loadReport(dir)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := fmt.Sprint(*got["cancel"].Cells[0], *got["cancel"].Cells[1]), fmt.Sprint(*r.Cells[0], *r.Cells[1]); a != b || got["cancel"].Machine[0] != "a" {
		t.Errorf("%s, want %s", a, b)
	}
}

func TestPicturesFit(t *testing.T) {
	for _, p := range pictures {
		if n := utf8.RuneCountInString(p.title); n > 75 {
			t.Errorf("the title of %s.svg has %d characters, of which some are cut off", p.name, n)
		}
	}
	for cand, l := range labels {
		if n := utf8.RuneCountInString(l); n > 28 {
			t.Errorf("the label of %s has %d characters, of which some are cut off", cand, n)
		}
	}
	if ticks := linearTicks(1080); !slices.Equal(ticks, []float64{0, 200, 400, 600, 800, 1000}) {
		t.Errorf("ticks up to 1080: %v", ticks)
	}
	if ticks := decades(29.4, 9760); !slices.Equal(ticks, []float64{10, 100, 1000, 10000}) {
		t.Errorf("ticks from 29.4 to 9760: %v", ticks)
	}
}

// What stands in results, and in the project's README, is what the records say.
func TestResultsAreTheRecords(t *testing.T) {
	r, err := loadReport("results")
	if err != nil {
		t.Fatal(err)
	}
	if len(r) != len(scenarios) {
		t.Errorf("records of %d of %d scenarios", len(r), len(scenarios))
	}
	files := r.files()
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("results", name))
		if err != nil {
			t.Error(err)
		} else if string(got) != want {
			t.Errorf("results/%s is not what the records say: go run . -rewrite results -readme ../README.md", name)
		}
	}
	entries, err := os.ReadDir("results")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if _, ok := files[name]; !ok && r[strings.TrimSuffix(name, ".json")] == nil {
			t.Errorf("results/%s is left over", name)
		}
	}
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.insertFigures(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != want {
		t.Error("README.md has other figures than results: go run . -rewrite results -readme ../README.md")
	}
	for _, f := range r.unknownFigures(string(text)) {
		t.Errorf("README.md says %q, which is not among the figures of results/README.md", f)
	}
}

// A figure in the text of the README that is measured: with a unit, or that many times.
var figure = regexp.MustCompile(`\b\d+(?:\.\d+)? (?:ns|µs|ms|k/s|M/s|%|KiB|times)|\b\d+\.\d+ s\b|\b0\.\d+\b`)

// unknownFigures returns the figures in the prose of readme that the summary and the
// targets do not have.
func (r report) unknownFigures(readme string) (unknown []string) {
	known := make(map[string]bool)
	var page strings.Builder
	page.WriteString(r.page())
	for _, sc := range scenarios {
		r.writeVerdicts(&page, sc.name)
	}
	for _, f := range regexp.MustCompile(`\d+(?:\.\d+)?(?: (?:ns|µs|ms|s|k/s|M/s|%|KiB))?`).FindAllString(page.String(), -1) {
		known[f] = true
	}
	before, rest, _ := strings.Cut(readme, figuresBegin)
	_, after, _ := strings.Cut(rest, figuresEnd)
	prose := regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(before+after, "")
	for _, f := range figure.FindAllString(prose, -1) {
		if n, ok := strings.CutSuffix(f, " times"); known[f] || ok && known[n] {
			continue
		}
		unknown = append(unknown, f)
	}
	return unknown
}

func TestStaleFiguresAreFound(t *testing.T) {
	rec := &record{Scenario: "goroutines", Started: time.Unix(1e9, 0), Finished: time.Unix(1e9, 0)}
	for cand, v := range map[string]float64{ours: 75.1e6, gofrs10: 1.08e9} {
		rec.add("256 goroutines, hold 100µs", cand, "longest wait", "ns", v)
	}
	r := report{"goroutines": rec}
	if u := r.unknownFigures("waits 75.1 ms, not 1.08 s: 14.4 times"); u != nil {
		t.Errorf("taken for unknown: %q", u)
	}
	if u := r.unknownFigures("waits 75.2 ms, not 1.09 s: 14.3 times, and 0.29 of it\n```\n3 ms\n```\n"); !slices.Equal(u, []string{"75.2 ms", "1.09 s", "14.3 times", "0.29"}) {
		t.Errorf("found of the stale ones: %q", u)
	}
	text, err := r.insertFigures("a\n" + figuresBegin + "old\n" + figuresEnd + "b\n")
	if err != nil || strings.Contains(text, "old") || !strings.Contains(text, "75.1 ms") {
		t.Errorf("%v\n%s", err, text)
	}
	if _, err := json.Marshal(rec.Cells[0]); err != nil {
		t.Error(err)
	}
}
