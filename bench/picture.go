//go:build linux

package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"strings"
)

// A picture shows bars of one or more cases of a scenario, one panel for each.
type picture struct {
	title  string // what is shown, of what, and which way is better
	panels []panel
}

type panel struct {
	title, kase, metric string
	cands               []string
}

var (
	barsKept   = []string{oursKept, gofrs1, gofrs10, locked, fmutex, bare}
	barsByPath = []string{ours, gofrs1, gofrs10, locked, fmutex, bare}
)

// pictures are those of the scenarios.
var pictures = map[string]picture{
	"uncontended": {"Time to lock and release a lock that nobody else wants (shorter is better)", []panel{
		{"opening the file each time", "by path, exclusive", "lock and release", []string{ours, gofrs10, gofrsStat, locked, fmutex, bareStat, bare}},
		{"on a file that is kept open, where that can be had", "kept, exclusive", "lock and release", []string{oursKept, gofrs10, locked, fmutex, bareStat, bare}},
	}},
	"handover": {"From one process's release to the next one's grant, median (shorter is better)", []panel{
		{"2 processes", "2 processes", "p50", barsKept},
		{"16 processes", "16 processes", "p50", barsKept},
	}},
	"cancel": {"Time from the cancel to the return, median (shorter is better)", []panel{
		{"while another process holds the lock", "another process holds it", "p50", []string{oursKept, oursPoll, gofrs1, gofrs10, fsl}},
	}},
	"goroutines": {"256 goroutines of one process that lock a file for 100 µs each, for 1.5 s", []panel{
		{"the longest that one of them waited (shorter is better)", "256 goroutines, hold 100µs", "longest wait", barsByPath},
		{"grants per second (longer is better)", "256 goroutines, hold 100µs", "throughput", barsByPath},
	}},
	"foreign": {"Another process beside 64 goroutines that lock for 100 µs each, again and again", []panel{
		{"the longest that it waited, in 2 s (shorter is better)", "64 goroutines, hold 100µs", "its longest wait", barsByPath},
	}},
	"readwrite": {"Half readers, half writers: 4 processes with 16 goroutines each", []panel{
		{"the longest that a writer waited (shorter is better)", "50:50, 4 processes with 16 goroutines each", "longest wait to write", barsKept},
		{"shared locks per second (longer is better)", "50:50, 4 processes with 16 goroutines each", "read throughput", barsKept},
	}},
	"processes": {"4 processes that take one lock for 5 µs, again and again", []panel{
		{"grants per second (longer is better)", "4 processes, section 5µs", "throughput", []string{oursKept, gofrs1, gofrs10, locked, bareStat, bare}},
		{"the longest that one of them waited (shorter is better)", "4 processes, section 5µs", "longest wait", []string{oursKept, gofrs1, gofrs10, locked, bareStat, bare}},
	}},
	"fair": {"The longest wait to write, in 1.5 s (shorter is better)", []panel{
		{"a writer beside readers of 3 processes", fairWriter, "longest wait to write", []string{oursFair, oursKept, bare}},
		{"16 processes that write", fairWriters, "longest wait to write", []string{oursFair, oursKept, bare}},
	}},
	"waiters": {"1000 goroutines that wait for 1000 files", []panel{
		{"processor time, of a core (shorter is better)", "1000 waiters on 1000 files", "CPU", []string{ours, gofrs1, gofrs10, locked, fmutex, bare}},
		{"threads (shorter is better)", "1000 waiters on 1000 files", "threads", []string{ours, gofrs1, gofrs10, locked, fmutex, bare}},
	}},
}

// In a README the picture is some 800 pixels wide, on a telephone half of that.
const (
	pictureWidth = 760
	labelWidth   = 170
	barWidth     = 470
	barHeight    = 22
)

// picture returns the picture of a scenario as SVG, nil where a panel of it was not
// measured.
func (r *record) picture(scenario string) []byte {
	p, ok := pictures[scenario]
	if !ok {
		return nil
	}
	var body strings.Builder
	y := 34
	for _, panel := range p.panels {
		next, ok := r.drawPanel(&body, scenario, panel, y)
		if !ok {
			return nil
		}
		y = next
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">
<style>
text { font: 14px -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px } .panel { fill: #59636e } .tick { font-size: 12px; fill: #59636e }
.ours { fill: #0b5fc4 } .peer { fill: #b4bcc6 } .axis { stroke: #d1d9e0 } .back { fill: #ffffff }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .panel, .tick { fill: #9198a1 }
.ours { fill: #58a6ff } .peer { fill: #59636e } .axis { stroke: #3d444d } .back { fill: #0d1117 }
}
</style>
<rect class="back" width="100%%" height="100%%"/>
<text class="title" x="10" y="24">%s</text>
%s</svg>
`, pictureWidth, y, pictureWidth, y, html.EscapeString(p.title), html.EscapeString(p.title), body.String())
	return out.Bytes()
}

// drawPanel draws a panel whose upper edge is at y, and returns its lower one.
func (r *record) drawPanel(out *strings.Builder, scenario string, p panel, y int) (int, bool) {
	type bar struct {
		name  string
		value float64
		mine  bool
	}
	var bars []bar
	unit, most := "", 0.0
	for _, name := range p.cands {
		for _, c := range r.Cells {
			// The first file system, where the name of the case goes on with one.
			if c.Scenario != scenario || c.Cand != name || c.Metric != p.metric || c.Case != p.kase && !strings.HasPrefix(c.Case, p.kase+", ") {
				continue
			}
			v := median(c.Rounds)
			if math.IsNaN(v) {
				break
			}
			bars = append(bars, bar{name, v, strings.HasPrefix(name, ours)})
			unit, most = c.Unit, max(most, v)
			break
		}
	}
	if len(bars) < 2 || most == 0 {
		return 0, false
	}
	fmt.Fprintf(out, "<text class=\"panel\" x=\"10\" y=\"%d\">%s</text>\n", y+20, html.EscapeString(p.title))
	y += 32
	step := tickStep(most)
	bottom := y + len(bars)*barHeight
	for v := 0.0; v <= most*1.0001; v += step {
		x := labelWidth + barWidth*v/most
		fmt.Fprintf(out, "<line class=\"axis\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/><text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
			x, x, y, bottom, x, bottom+16, tick(v, unit))
	}
	for i, b := range bars {
		class, top := "peer", y+i*barHeight
		if b.mine {
			class = "ours"
		}
		width := max(barWidth*b.value/most, 1.5)
		fmt.Fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text><rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\"/><text x=\"%.1f\" y=\"%d\">%s</text>\n",
			labelWidth-8, top+16, html.EscapeString(shown(b.name)), class, labelWidth, top+3, width, barHeight-6, labelWidth+width+6, top+16, amount(b.value, unit))
	}
	return bottom + 28, true
}

// shown returns the name of a candidate as a reader who knows none of them needs it.
func shown(cand string) string {
	switch cand {
	case oursKept:
		return "flockctx"
	case gofrs1:
		return "gofrs/flock, 1 ms"
	case gofrs10:
		return "gofrs/flock, 10 ms"
	case gofrsStat:
		return "gofrs/flock + stat"
	case bare:
		return "flock(2) from Go"
	case bareStat:
		return "flock(2), stat(2)"
	}
	return cand
}

// amount prints v. What is counted by the second the panel's title says.
func amount(v float64, unit string) string {
	if unit != "/s" || v < 100 {
		return format(v, unit)
	}
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// tickStep returns a round distance of the ticks from 0 to most.
func tickStep(most float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(most)))
	for _, m := range []float64{0.2, 0.25, 0.5, 1, 2} {
		if most/(m*p) <= 5 {
			return m * p
		}
	}
	return 2 * p
}

func tick(v float64, unit string) string {
	if v == 0 {
		return "0"
	}
	n, u, _ := strings.Cut(amount(v, unit), " ")
	if strings.Contains(n, ".") {
		n = strings.TrimRight(strings.TrimRight(n, "0"), ".")
	}
	return strings.TrimSpace(n + " " + u)
}
