//go:build linux

package main

import (
	"bytes"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// The percentile of n samples is the one of that rank, and is not told of too few.
func TestPercentiles(t *testing.T) {
	upTo := func(n int) (s []int64) {
		for i := range n {
			s = append(s, int64(n-i))
		}
		return s
	}
	for _, c := range []struct {
		n    int
		q    float64
		want float64
	}{
		{1000, 0.99, 990}, {2000, 0.99, 1980}, {999, 0.99, unknown}, {100, 0.99, unknown},
		{100, 0.5, 50}, {101, 0.5, 51}, {20, 0.5, 10}, {19, 0.5, unknown},
		{100, 1, 100}, {1, 1, 1}, {0, 1, 0}, {0, 0.5, unknown},
	} {
		if got := exact(upTo(c.n), c.q); got != c.want {
			t.Errorf("quantile %v of 1 to %d: %v, want %v", c.q, c.n, got, c.want)
		}
		var tally tally
		for _, s := range upTo(c.n) {
			tally.add(s)
		}
		var h histogram
		h.addTally(&tally)
		got := h.quantile(c.q) // in buckets of 1/32
		if c.want == unknown && got != unknown || c.want != unknown && (got < c.want*0.96 || got > c.want*1.04) {
			t.Errorf("in buckets: quantile %v of 1 to %d: %v, want some %v", c.q, c.n, got, c.want)
		}
	}
}

// A ratio says how many times better flockctx is, whichever way the metric counts, and
// leaves out the rounds in which one of the two is not known.
func TestTimes(t *testing.T) {
	slow, fast := &cell{Metric: "p50", Rounds: []float64{10, 20, unknown}}, &cell{Metric: "p50", Rounds: []float64{5, 5, 5}}
	if r := times(fast, slow); r != (ratio{3, 2, 4}) {
		t.Error(r)
	}
	few, many := &cell{Metric: "throughput", Rounds: []float64{5}}, &cell{Metric: "throughput", Rounds: []float64{20}}
	if r := times(many, few); r.mid != 4 {
		t.Error(r)
	}
	if s := (ratio{0.9, 0.8, 1}).markdown(); s != "**0.90** (0.80–1.00)" {
		t.Error(s)
	}
	if s := (ratio{1.2, 1.2, 1.2}).markdown(); s != "1.20" {
		t.Error(s)
	}
}

// What is kept of the last run is what its data says, and so is the README's table.
func TestResultsAreOfTheData(t *testing.T) {
	r, err := readRecord("results")
	if err != nil {
		t.Fatal(err)
	}
	files := r.report()
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("results", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("results/%s is not of data.json (%v): go run . -rewrite results -readme ../README.md", name, err)
		}
		if filepath.Ext(name) == ".svg" {
			d := xml.NewDecoder(bytes.NewReader(want))
			for err = nil; err == nil; {
				_, err = d.Token()
			}
			if err != io.EOF {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	entries, err := os.ReadDir("results")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if files[e.Name()] == nil && e.Name() != "data.json" {
			t.Errorf("results/%s is of no scenario", e.Name())
		}
	}
	for _, s := range scenarios {
		if files[s.name+".svg"] == nil {
			t.Errorf("no picture of %s", s.name)
		}
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.withSummary(readme)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readme, want) {
		t.Error("the README's table is not of data.json: go run . -rewrite results -readme ../README.md")
	}
}
