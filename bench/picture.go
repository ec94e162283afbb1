//go:build linux

package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strings"
)

// A picture is an SVG: panels below each other, in each a mark for every candidate on one
// axis. It says itself what it shows, in light and in dark.
type picture struct {
	name, scenario string
	title          string
	metric         string
	cases          []panel
	cands          []string // those that are there, in any order; nil: all
	front          bool     // on the first page
	log            bool     // dots on a logarithmic axis, instead of bars
	axis           string   // what is on it, with its unit
	unit           float64  // of the axis, in that of the metric
}

// A panel is a case, under a heading unless it is alone.
type panel struct{ kase, heading string }

var pictures = []picture{
	{
		name: "waits", scenario: "goroutines", metric: "longest wait", front: true,
		title: "256 goroutines share a lock for 1.5 s: the longest wait of any",
		cases: []panel{{"256 goroutines, hold 100µs", ""}},
		cands: []string{ours, gofrs1, gofrs10, locked, fmutex, fsl, bare},
		axis:  "milliseconds – shorter is better", unit: 1e6,
	},
	{
		name: "foreign", scenario: "foreign", metric: "its longest wait", front: true,
		title: "One more process beside 64 busy goroutines: its longest wait",
		cases: []panel{{"64 goroutines, hold 100µs", ""}},
		cands: []string{ours, gofrs1, gofrs10, locked, fmutex, fsl, bare},
		axis:  "milliseconds – shorter is better", unit: 1e6,
	},
	{
		name: "handover", scenario: "handover", metric: "p50", front: true, log: true,
		title: "A process waits: from the release by another to its own lock, median",
		cases: []panel{{"2 processes", ""}},
		cands: []string{oursKept, gofrs1, gofrs10, locked, fmutex, fsl, bare, bareC},
		axis:  "microseconds, each line ten times the one before – left is better", unit: 1e3,
	},
	{
		name: "uncontended", scenario: "uncontended", metric: "lock and release",
		title: "Lock and release where nobody else wants the lock",
		cases: []panel{{"by path, exclusive, *", "by path: open, lock, release, close"}, {"kept, exclusive, *", "file kept open, where the library can do that"}},
		cands: []string{ours, oursKept, gofrs10, gofrsStat, locked, fmutex, fsl, bare, bareStat, bareC},
		axis:  "microseconds – shorter is better", unit: 1e3,
	},
	processesPicture(0), processesPicture(5), processesPicture(50),
	{
		name: "cancel", scenario: "cancel", metric: "p50",
		title: "From the cancel of a context to the return of Lock, median",
		cases: []panel{{"parked", "behind a goroutine of the same process"}, {"another process holds it", "behind another process"}},
		axis:  "microseconds – shorter is better", unit: 1e3,
	},
	{
		name: "goroutines", scenario: "goroutines", metric: "throughput",
		title: "256 goroutines share a lock: grants per second",
		cases: []panel{{"256 goroutines, hold 100µs", ""}},
		axis:  "thousands per second – longer is better", unit: 1e3,
	},
	{
		name: "readwrite", scenario: "readwrite", metric: "throughput",
		title: "4 processes of 16 goroutines read and write: grants per second",
		cases: []panel{{"50:50, 4 processes with 16 goroutines each", "half of them write"}, {"99:1, 4 processes with 16 goroutines each", "1 in 100 writes"}},
		axis:  "thousands per second – longer is better", unit: 1e3,
	},
	{
		name: "fair", scenario: "fair", metric: "longest wait to write", log: true,
		title: "The longest wait of a writer within 1.5 s, with Fair and without",
		cases: []panel{{"a writer beside readers of 3 processes", "a writer beside readers of 3 processes"}, {"16 writers", "16 writers"}, {"99:1, 16 processes", "16 processes that write now and then"}},
		axis:  "milliseconds, each line ten times the one before – left is better", unit: 1e6,
	},
	{
		name: "waiters", scenario: "waiters", metric: "CPU", log: true,
		title: "1000 goroutines wait for 1000 files: processor time while nothing happens",
		cases: []panel{{"1000 waiters on 1000 files", ""}},
		axis:  "per cent of a core, each line ten times the one before – left is better", unit: 1,
	},
	{
		name: "slots", scenario: "slots", metric: "time",
		title: "A command in one of three slots: time for each",
		cases: []panel{{"6 starters, 3 slots", ""}},
		axis:  "milliseconds – shorter is better", unit: 1e6,
	},
}

// processesPicture returns that of a section of so many microseconds. Each has an axis of
// its own: the shorter the section, the more of them there are.
func processesPicture(us int) picture {
	return picture{
		name: fmt.Sprintf("processes-%d", us), scenario: "processes", metric: "throughput",
		title: fmt.Sprintf("4 processes take one lock again and again, for %d µs: grants per second", us),
		cases: []panel{{fmt.Sprintf("4 processes, %d µs", us), ""}},
		axis:  "thousands per second – longer is better", unit: 1e3,
	}
}

// The sizes of a picture, in pixels. A README on GitHub has some 830 of them.
const (
	pictureWidth  = 760
	axisLeft      = 210 // the names stand before it
	axisRight     = 680 // the greatest value's text after it
	rowHeight     = 26
	headingHeight = 30
)

const pictureStyle = `<style>
.bg{fill:#fff}text{font:14px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:#1f2328}
.title{font-size:16px;font-weight:600}.small{font-size:12px;fill:#59636e}.head{font-weight:600}
.own{fill:#0b5fc4}text.own{font-weight:600}.peer{fill:#a3abb5}.grid{stroke:#d8dee4}
@media(prefers-color-scheme:dark){.bg{fill:#0d1117}text{fill:#f0f6fc}.small{fill:#9198a1}
.own{fill:#58a6ff}.peer{fill:#6e7681}.grid{stroke:#30363d}}
</style>
`

// A mark is a candidate in a panel.
type mark struct {
	cand  string
	value float64 // in the unit of the axis
	text  string
}

// marks returns those of a panel, the best first.
func (p picture) marks(r report, kase string) (m []mark) {
	rec := r[p.scenario]
	if rec == nil {
		return nil
	}
	for _, c := range rec.Cells {
		prefix, any := strings.CutSuffix(kase, "*")
		if c.Metric != p.metric || c.Case != kase && !(any && strings.HasPrefix(c.Case, prefix)) || p.cands != nil && !slices.Contains(p.cands, c.Cand) {
			continue
		}
		if slices.ContainsFunc(m, func(o mark) bool { return o.cand == c.Cand }) { // another file system
			continue
		}
		if v := median(c.Rounds); v > 0 {
			m = append(m, mark{c.Cand, v / p.unit, short(v/p.unit) + p.suffix(c.Unit)})
		}
	}
	slices.SortStableFunc(m, func(a, b mark) int {
		if a.value < b.value != greaterIsBetter[p.metric] {
			return -1
		}
		return 1
	})
	return m
}

// suffix is what the unit of the axis is called after a figure.
func (p picture) suffix(unit string) string {
	switch {
	case unit == "ns" && p.unit == 1e6:
		return " ms"
	case unit == "ns" && p.unit == 1e3:
		return " µs"
	case unit == "/s" && p.unit == 1e3:
		return " k/s"
	}
	return " " + unit
}

// draw returns the picture, or "" where nothing of it was measured.
func (p picture) draw(r report) string {
	var panels [][]mark
	var headings []string
	least, greatest := math.Inf(1), 0.0
	for _, c := range p.cases {
		m := p.marks(r, c.kase)
		if len(m) == 0 {
			continue
		}
		panels, headings = append(panels, m), append(headings, c.heading)
		for _, o := range m {
			least, greatest = min(least, o.value), max(greatest, o.value)
		}
	}
	if len(panels) == 0 {
		return ""
	}
	ticks := linearTicks(greatest)
	if p.log {
		ticks = decades(least, greatest)
	}
	first, last := ticks[0], max(ticks[len(ticks)-1], greatest)
	x := func(v float64) float64 {
		if p.log {
			return axisLeft + (axisRight-axisLeft)*math.Log(v/first)/math.Log(last/first)
		}
		return axisLeft + (axisRight-axisLeft)*v/last
	}
	var body strings.Builder
	y := 44.0
	for i, marks := range panels {
		if headings[i] != "" {
			fmt.Fprintf(&body, `<text class="head" x="16" y="%.0f">%s</text>`+"\n", y+20, escape(headings[i]))
			y += headingHeight
		}
		bottom := y + float64(len(marks)*rowHeight)
		for _, t := range ticks {
			fmt.Fprintf(&body, `<line class="grid" x1="%.1f" x2="%.1f" y1="%.0f" y2="%.0f"/>`+"\n", x(t), x(t), y, bottom)
		}
		for _, m := range marks {
			class := "peer"
			if strings.HasPrefix(m.cand, ours) {
				class = "own"
			}
			weight := ""
			if class == "own" {
				weight = ` class="own"`
			}
			middle := y + rowHeight/2
			fmt.Fprintf(&body, `<text%s x="%d" y="%.0f" text-anchor="end">%s</text>`, weight, axisLeft-10, middle+5, escape(label(m.cand)))
			end := x(m.value)
			if p.log {
				fmt.Fprintf(&body, `<circle class="%s" cx="%.1f" cy="%.0f" r="7"/>`, class, end, middle)
				end += 5
			} else {
				fmt.Fprintf(&body, `<rect class="%s" x="%d" y="%.0f" width="%.1f" height="%d"/>`, class, axisLeft, middle-8, max(end-axisLeft, 1), 16)
			}
			fmt.Fprintf(&body, `<text%s x="%.1f" y="%.0f">%s</text>`+"\n", weight, end+7, middle+5, escape(m.text))
			y += rowHeight
		}
		y = bottom + 4
	}
	for _, t := range ticks {
		fmt.Fprintf(&body, `<text class="small" x="%.1f" y="%.0f" text-anchor="middle">%s</text>`+"\n", x(t), y+14, tickText(t))
	}
	fmt.Fprintf(&body, `<text class="small" x="%d" y="%.0f" text-anchor="middle">%s</text>`+"\n", (axisLeft+axisRight)/2, y+34, escape(p.axis))
	height := y + 46
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]d %[2]d" width="%[1]d" height="%[2]d" role="img"><title>%[3]s</title>
%[4]s<rect class="bg" width="100%%" height="100%%"/>
<text class="title" x="16" y="26">%[3]s</text>
%[5]s</svg>
`, pictureWidth, int(height), escape(p.title), pictureStyle, body.String())
}

func escape(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s)) // a Builder does not fail
	return b.String()
}

// linearTicks returns some round values from 0 on, up to the greatest.
func linearTicks(greatest float64) (t []float64) {
	step := math.Pow(10, math.Floor(math.Log10(greatest)))
	for _, f := range []float64{0.1, 0.2, 0.5, 1, 2} {
		if greatest/(step*f) <= 6 {
			step *= f
			break
		}
	}
	for i := 0; float64(i)*step <= greatest*1.0001; i++ {
		t = append(t, float64(i)*step)
	}
	return t
}

// decades returns the powers of ten around the values.
func decades(least, greatest float64) (t []float64) {
	for e := math.Floor(math.Log10(least)); ; e++ {
		t = append(t, math.Pow(10, e))
		if t[len(t)-1] >= greatest {
			return t
		}
	}
}

func tickText(v float64) string { return fmt.Sprintf("%.6g", v) }
