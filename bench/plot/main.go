// Command plot draws the pictures of a run from its data.json. It is a program of its
// own, so that what measures does not carry the fonts.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// What is read of a record; see record.go of the bench.
type record struct {
	Cells []struct {
		Scenario, Case, Cand, Metric, Unit string
		Rounds                             []float64
	}
	Quantiles []float64
	Curves    []struct {
		Scenario, Case, Cand string
		N                    int64
		Values               []float64
	}
}

type look struct {
	color  color.RGBA
	dashes []vg.Length
	width  vg.Length
}

var (
	blue   = color.RGBA{0x0b, 0x5f, 0xc4, 0xff}
	orange = color.RGBA{0xe0, 0x7b, 0x00, 0xff}
	green  = color.RGBA{0x2e, 0x8b, 0x3d, 0xff}
	pink   = color.RGBA{0xc2, 0x3b, 0x8a, 0xff}
	brown  = color.RGBA{0x8a, 0x5a, 0x2b, 0xff}
	black  = color.RGBA{0x22, 0x22, 0x22, 0xff}

	dashed = []vg.Length{5, 3}
	dotted = []vg.Length{1.5, 2.5}
)

// looks are the candidates in the order of the legend.
var looks = []struct {
	name string
	look
}{
	{"flockctx", look{blue, nil, 2.4}},
	{"flockctx kept", look{blue, dashed, 2.4}},
	{"flockctx poll", look{blue, dotted, 2}},
	{"flockctx + flock(2)", look{blue, []vg.Length{8, 2, 1.5, 2}, 1.3}},
	{"gofrs 1ms", look{orange, dashed, 1.3}},
	{"gofrs 10ms", look{orange, nil, 1.3}},
	{"gofrs Lock", look{orange, dotted, 1.3}},
	{"lockedfile", look{green, nil, 1.3}},
	{"filemutex", look{pink, nil, 1.3}},
	{"fslock", look{brown, nil, 1.3}},
	{"flock(2) Go", look{black, nil, 1.3}},
	{"flock(2)+stat Go", look{black, dashed, 1.3}},
	{"flock(2) C", look{black, dotted, 1.3}},
}

func lookOf(cand string) look {
	for _, l := range looks {
		if l.name == cand {
			return l.look
		}
	}
	return look{color: black, width: 1}
}

func (l look) style() draw.LineStyle {
	return draw.LineStyle{Color: l.color, Width: l.width, Dashes: l.dashes}
}

// A figure is panels side by side and below each other, with one legend.
type figure struct {
	panels [][]*plot.Plot
	used   map[string]bool // candidates

	// caption says what the axes are: labels at logarithmic axes would be taken
	// to overhang by plot.Align.
	caption string
}

func main() {
	dir := flag.String("dir", "results", "read data.json from this `directory`, and write the pictures there")
	flag.Parse()
	if err := run(*dir); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "data.json"))
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return err
	}
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	plotter.DefaultFont = plot.DefaultFont

	draws := []struct {
		name string
		fig  *figure
	}{
		{"waits", r.distributions("goroutines", "of the grants that waited", []string{
			"16 goroutines, hold 0s", "16 goroutines, hold 100µs",
			"256 goroutines, hold 0s", "256 goroutines, hold 100µs"}, 2)},
		{"handover", r.distributions("handover", "of the hand-overs that took", []string{"2 processes", "4 processes", "16 processes"}, 3)},
		{"foreign", r.distributions("foreign", "of the other process's grants that waited", []string{"64 goroutines, hold 0s", "64 goroutines, hold 100µs"}, 2)},
		{"cancel", r.distributions("cancel", "of the cancellations that took", []string{"parked", "another process holds it"}, 2)},
		{"readwrite", r.distributions("readwrite", "of the exclusive grants that waited", []string{"99:1, 64 goroutines of one process", "50:50, 64 goroutines of one process"}, 2)},
		{"waiters", r.growth("waiters", "%d waiters on %d files", "waiters, each on a file of its own", "CPU", "threads", "memory each")},
		{"goroutines", r.throughput()},
		{"uncontended", r.bars()},
	}
	for _, d := range draws {
		if d.fig == nil {
			continue
		}
		if err := d.fig.save(filepath.Join(dir, d.name+".svg")); err != nil {
			return err
		}
	}
	return nil
}

// distributions draws for each case which share of grants took longer than a time.
func (r *record) distributions(scenario, verb string, cases []string, columns int) *figure {
	f := &figure{used: make(map[string]bool), caption: "vertical: share " + verb + " longer than the time below"}
	var row []*plot.Plot
	for _, kase := range cases {
		p := newPlot(kase)
		p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
		p.X.Tick.Marker, p.Y.Tick.Marker = decades{duration}, decades{share}
		found := false
		for _, l := range looks {
			for _, c := range r.Curves {
				if c.Scenario != scenario || c.Case != kase || c.Cand != l.name {
					continue
				}
				var pts plotter.XYs
				for i, q := range r.Quantiles {
					y := 1 - q
					if y < 1/float64(c.N) {
						// The last one is the longest.
						pts = append(pts, plotter.XY{X: clamp(c.Values[len(c.Values)-1]), Y: 1 / float64(c.N)})
						break
					}
					pts = append(pts, plotter.XY{X: clamp(c.Values[i]), Y: y})
				}
				if len(pts) < 2 {
					continue
				}
				f.line(p, c.Cand, pts, false)
				found = true
			}
		}
		if !found {
			continue
		}
		p.Y.Max = 1
		if row = append(row, p); len(row) == columns {
			f.panels, row = append(f.panels, row), nil
		}
	}
	return f.with(row, columns)
}

func clamp(ns float64) float64 { return max(ns, 100) }

// with adds a last row, and returns nil for a figure without a panel.
func (f *figure) with(row []*plot.Plot, columns int) *figure {
	if len(row) > 0 {
		for len(f.panels) > 0 && len(row) < columns {
			row = append(row, nil)
		}
		f.panels = append(f.panels, row)
	}
	if len(f.panels) == 0 {
		return nil
	}
	return f
}

// growth draws metrics against the number in the names of cases.
func (r *record) growth(scenario, pattern, label string, metrics ...string) *figure {
	f := &figure{used: make(map[string]bool), caption: "horizontal: " + label}
	var row []*plot.Plot
	for _, metric := range metrics {
		p := newPlot(metric)
		p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
		p.X.Tick.Marker = decades{count}
		for _, l := range looks {
			var pts plotter.XYs
			for _, c := range r.Cells {
				var n, m int
				if c.Scenario != scenario || c.Cand != l.name || c.Metric != metric {
					continue
				}
				if k, _ := fmt.Sscanf(c.Case, pattern, &n, &m); k != 2 || n != m {
					continue
				}
				y := median(c.Rounds)
				p.Y.Tick.Marker = decades{unit(c.Unit)}
				if y > 0 {
					pts = append(pts, plotter.XY{X: float64(n), Y: y})
				}
			}
			if len(pts) > 1 {
				f.line(p, l.name, pts, true)
			}
		}
		if len(f.used) > 0 {
			row = append(row, p)
		}
	}
	return f.with(row, len(metrics))
}

// throughput draws throughput and longest wait against the number of goroutines.
func (r *record) throughput() *figure {
	f := &figure{used: make(map[string]bool), caption: "horizontal: goroutines of one process that lock one file"}
	holds := []string{"0s", "100µs"}
	for _, metric := range []string{"throughput", "longest wait"} {
		var row []*plot.Plot
		for _, hold := range holds {
			p := newPlot(metric + ", hold " + hold)
			p.X.Scale = plot.LogScale{}
			if metric != "throughput" {
				p.Y.Scale = plot.LogScale{}
			}
			p.X.Tick.Marker = decades{count}
			found := false
			for _, l := range looks {
				var pts plotter.XYs
				for _, c := range r.Cells {
					var n int
					if c.Scenario != "goroutines" || c.Cand != l.name || c.Metric != metric || !strings.HasSuffix(c.Case, ", hold "+hold) {
						continue
					}
					fmt.Sscanf(c.Case, "%d goroutines", &n)
					p.Y.Tick.Marker = decades{unit(c.Unit)}
					if metric == "throughput" {
						p.Y.Min, p.Y.Tick.Marker = 0, linear{unit(c.Unit)}
					}
					if y := median(c.Rounds); y > 0 {
						pts = append(pts, plotter.XY{X: float64(n), Y: y})
					}
				}
				if len(pts) > 1 {
					f.line(p, l.name, pts, true)
					found = true
				}
			}
			if found {
				row = append(row, p)
			}
		}
		if len(row) == len(holds) {
			f.panels = append(f.panels, row)
		}
	}
	return f.with(nil, 2)
}

// bars draws the uncontended costs as ratios to the bare system calls.
func (r *record) bars() *figure {
	f := &figure{used: make(map[string]bool), caption: "time to lock and release, as a multiple of that of flock(2) Go"}
	var row []*plot.Plot
	for _, way := range []string{"by path", "kept"} {
		times := make(map[string]float64)
		where := ""
		for _, c := range r.Cells {
			if c.Scenario == "uncontended" && c.Metric == "lock and release" && strings.HasPrefix(c.Case, way+", exclusive") && (where == "" || c.Case == where) {
				where = c.Case
				times[c.Cand] = median(c.Rounds)
			}
		}
		if times["flock(2) Go"] == 0 {
			continue
		}
		p := newPlot(where)
		var names []string
		for _, l := range slices.Backward(looks) {
			t, ok := times[l.name]
			if !ok {
				continue
			}
			ratio := t / times["flock(2) Go"]
			b, err := plotter.NewBarChart(plotter.Values{ratio}, 12)
			if err != nil {
				panic(err)
			}
			b.Horizontal = true
			b.XMin = float64(len(names))
			b.Color, b.LineStyle.Width = l.color, 0
			p.Add(b)
			labels, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: ratio, Y: b.XMin}}, Labels: []string{fmt.Sprintf(" %.2f", ratio)}})
			if err != nil {
				panic(err)
			}
			labels.TextStyle[0].YAlign = draw.YCenter
			labels.TextStyle[0].Font.Size = 9
			p.Add(labels)
			names = append(names, l.name+"  ")
			p.X.Max = max(p.X.Max, 1.15*ratio)
		}
		p.X.Min, p.X.Tick.Marker = 0, linear{trim}
		p.NominalY(names...)
		p.Y.Tick.Length = 0
		row = append(row, p)
	}
	return f.with(row, 2)
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func newPlot(title string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	p.Title.TextStyle.Font.Size = 11
	p.Title.Padding = 6
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle.Font.Size = 9
		a.Tick.Label.Font.Size = 8.5
		a.LineStyle.Width = 0.6
		a.Tick.LineStyle.Width = 0.6
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{0xe6}, color.Gray{0xe6}
	p.Add(grid)
	return p
}

func (f *figure) line(p *plot.Plot, cand string, pts plotter.XYs, dots bool) {
	slices.SortFunc(pts, func(a, b plotter.XY) int {
		if a.X != b.X {
			return int(math.Copysign(1, a.X-b.X))
		}
		return int(math.Copysign(1, b.Y-a.Y))
	})
	line, err := plotter.NewLine(pts)
	if err != nil {
		panic(err)
	}
	look := lookOf(cand)
	line.LineStyle = look.style()
	p.Add(line)
	if dots {
		s, err := plotter.NewScatter(pts)
		if err != nil {
			panic(err)
		}
		s.GlyphStyle = draw.GlyphStyle{Color: look.color, Radius: 1.2 * look.width, Shape: draw.CircleGlyph{}}
		p.Add(s)
	}
	f.used[cand] = true
}

func (f *figure) save(name string) error {
	const width, height = 275, 215
	legendWidth := vg.Length(130)
	if len(f.used) == 0 {
		legendWidth = 0
	}
	const captionHeight = 18
	rows, columns := len(f.panels), len(f.panels[0])
	w, h := vg.Length(columns)*width+legendWidth, vg.Length(rows)*height+captionHeight
	canvas := vgsvg.New(w, h)
	all := draw.New(canvas)
	all.FillPolygon(color.White, []vg.Point{{X: 0, Y: 0}, {X: w, Y: 0}, {X: w, Y: h}, {X: 0, Y: h}})
	area := draw.Crop(all, 6, -legendWidth-6, captionHeight+4, -6)
	style := plot.New().Title.TextStyle
	style.Font.Size, style.XAlign, style.YAlign = 9.5, draw.XCenter, draw.YBottom
	all.FillText(style, vg.Point{X: (w - legendWidth) / 2, Y: 6}, f.caption)
	tiles := draw.Tiles{Rows: rows, Cols: columns, PadX: 14, PadY: 12}
	for j, row := range plot.Align(f.panels, tiles, area) {
		for i, c := range row {
			if p := f.panels[j][i]; p != nil {
				p.Draw(c)
			}
		}
	}
	if len(f.used) > 0 {
		legend := plot.NewLegend()
		legend.Top, legend.Left = true, true
		legend.TextStyle.Font.Size = 9.5
		legend.Padding = 3
		legend.ThumbnailWidth = 26
		for _, l := range looks {
			if f.used[l.name] {
				legend.Add(l.name, &plotter.Line{LineStyle: l.style()})
			}
		}
		legend.Draw(draw.Crop(all, w-legendWidth, 0, 0, -24))
	}
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	// Where the font is missing, one of the same widths.
	text := strings.ReplaceAll(svg.String(), "font-family:Liberation Sans", "font-family:Liberation Sans,Arial,Helvetica")
	return os.WriteFile(name, []byte(text), 0o644)
}

// decades are ticks at powers of ten.
type decades struct{ format func(float64) string }

func (d decades) Ticks(lo, hi float64) (t []plot.Tick) {
	first, last := math.Floor(math.Log10(lo)), math.Ceil(math.Log10(hi))
	for e := first; e <= last; e++ {
		for m := 1.0; m < 10; m++ {
			v := m * math.Pow(10, e)
			if v < 0.999*lo || v > 1.001*hi {
				continue
			}
			tick := plot.Tick{Value: v}
			switch {
			case m == 1 && (last-first <= 5 || int(e)%2 == 0), // all, or every other one, is legible
				last-first < 3 && (m == 2 || m == 5):
				tick.Label = d.format(v)
			case m > 1 && last-first > 3:
				continue
			}
			t = append(t, tick)
		}
	}
	return t
}

// linear are the usual ticks, in a unit.
type linear struct{ format func(float64) string }

func (l linear) Ticks(lo, hi float64) []plot.Tick {
	t := plot.DefaultTicks{}.Ticks(lo, hi)
	for i := range t {
		if t[i].Label != "" {
			t[i].Label = l.format(t[i].Value)
		}
	}
	return t
}

func unit(u string) func(float64) string {
	switch u {
	case "ns":
		return duration
	case "%":
		return func(v float64) string { return trim(v) + " %" }
	case "B":
		return func(v float64) string {
			if v >= 1e3 {
				return trim(v/1e3) + " kB"
			}
			return trim(v) + " B"
		}
	case "/s":
		return func(v float64) string { return count(v) + "/s" }
	}
	return count
}

func duration(ns float64) string {
	switch {
	case ns >= 1e9:
		return trim(ns/1e9) + " s"
	case ns >= 1e6:
		return trim(ns/1e6) + " ms"
	case ns >= 1e3:
		return trim(ns/1e3) + " µs"
	}
	return trim(ns) + " ns"
}

func share(v float64) string { return trim(100*v) + " %" }

func count(v float64) string {
	switch {
	case v >= 1e6:
		return trim(v/1e6) + " M"
	case v >= 1e3:
		return trim(v/1e3) + " k"
	}
	return trim(v)
}

func trim(v float64) string { return fmt.Sprintf("%.4g", v) }
