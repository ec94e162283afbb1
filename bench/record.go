//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A record is what one run of a scenario measured, and where. It is kept as JSON, a file
// for each scenario; all else in the directory of results is made from these.
type record struct {
	Scenario          string
	Started, Finished time.Time
	Quick             bool
	Machine           []string // system, processors, memory, Go
	Peers             []string // their versions
	LoadBefore        string   // averages
	LoadAfter         string
	Idle              float64 // of the second before, the share in which the processors had nothing to do
	Stolen            float64 // of the run, the share in which a host gave the processors to others
	Notes             []string
	Cells             []*cell
}

// A cell is one figure of one candidate, once per round. The rounds of all candidates
// of a case are paired: they were measured one right after the other.
type cell struct {
	Case, Cand, Metric, Unit string
	Rounds                   figures
}

// figures are numbers of which some may be missing: NaN, in JSON null.
type figures []float64

// MarshalJSON writes the figures with the digits that they have.
func (f figures) MarshalJSON() ([]byte, error) {
	p := make([]*float64, len(f))
	for i := range f {
		if !math.IsNaN(f[i]) {
			p[i] = &f[i]
		}
	}
	return json.Marshal(p)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (f *figures) UnmarshalJSON(text []byte) error {
	var p []*float64
	if err := json.Unmarshal(text, &p); err != nil {
		return err
	}
	*f = nil
	for _, v := range p {
		if v == nil {
			*f = append(*f, math.NaN())
		} else {
			*f = append(*f, *v)
		}
	}
	return nil
}

func newRecord(scenario string, quick bool) *record {
	r := &record{Scenario: scenario, Started: time.Now().UTC().Truncate(time.Second), Quick: quick, LoadBefore: load()}
	r.Machine, r.Peers = machine()
	before := readProcessors()
	time.Sleep(time.Second)
	after := readProcessors()
	r.Idle = digits(float64(after.idle-before.idle)/float64(max(after.all-before.all, 1)), 3)
	return r
}

// processors are the ticks of all processors together.
type processors struct{ all, idle, stolen int64 }

func readProcessors() (p processors) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return p
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil || i > 7 { // what follows is counted already
			break
		}
		p.all += n
		switch i {
		case 3, 4: // idle, and waiting for a disk
			p.idle += n
		case 7:
			p.stolen = n
		}
	}
	return p
}

func (r *record) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *record) find(kase, cand, metric string) *cell {
	if r == nil {
		return nil
	}
	for _, c := range r.Cells {
		if c.Case == kase && c.Cand == cand && c.Metric == metric {
			return c
		}
	}
	return nil
}

func (r *record) add(kase, cand, metric, unit string, v float64) {
	c := r.find(kase, cand, metric)
	if c == nil {
		c = &cell{Case: kase, Cand: cand, Metric: metric, Unit: unit}
		r.Cells = append(r.Cells, c)
	}
	c.Rounds = append(c.Rounds, digits(v, 5))
}

// addTimes adds the quantiles of samples, as far as there are enough, and the greatest.
func (r *record) addTimes(kase, cand string, samples []int64) {
	r.add(kase, cand, "p50", "ns", quantile(samples, 0.5))
	r.add(kase, cand, "p90", "ns", quantile(samples, 0.9))
	r.add(kase, cand, "p99", "ns", quantile(samples, 0.99))
	r.add(kase, cand, "max", "ns", greatest(samples))
	r.add(kase, cand, "samples", "", float64(len(samples)))
}

// digits rounds v to n of them, for a file of legible size.
func digits(v float64, n int) float64 {
	r, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', n, 64), 64)
	if err != nil {
		return v
	}
	return r
}

// save writes r into dir, a cell to a line.
func (r *record) save(dir string) error {
	head := *r
	head.Cells = nil
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	var out strings.Builder
	out.WriteString(strings.TrimSuffix(string(text), `"Cells":null}`) + `"Cells":[`)
	for i, c := range r.Cells {
		text, err := json.Marshal(c)
		if err != nil {
			return err
		}
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteString("\n" + string(text))
	}
	out.WriteString("\n]}\n")
	return os.WriteFile(filepath.Join(dir, r.Scenario+".json"), []byte(out.String()), 0o644)
}

// A report is the records of a directory, as far as they are there, by scenario.
type report map[string]*record

func loadReport(dir string) (report, error) {
	r := make(report)
	for _, s := range scenarios {
		text, err := os.ReadFile(filepath.Join(dir, s.name+".json"))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		one := new(record)
		if err := json.Unmarshal(text, one); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		r[s.name] = one
	}
	return r, nil
}

// machine describes where the run is made, and what of.
func machine() (lines, peers []string) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		lines = append(lines, fmt.Sprintf("%s %s, %s", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])))
	}
	cpuName := "CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpuName = strings.TrimSpace(value)
				break
			}
		}
	}
	lines = append(lines, fmt.Sprintf("%d × %s", runtime.NumCPU(), cpuName))
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) == nil {
		lines = append(lines, format(float64(s.Totalram)*float64(s.Unit), "B")+" of memory")
	}
	lines = append(lines, runtime.Version())
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			for _, p := range []string{"gofrs/flock", "go-internal", "go-filemutex", "juju/fslock"} {
				if strings.HasSuffix(m.Path, p) {
					peers = append(peers, m.Path+" "+m.Version)
				}
			}
		}
	}
	return lines, peers
}

func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
