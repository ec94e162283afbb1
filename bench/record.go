//go:build linux

package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A record is what a run measured. Its JSON is what the report is made of.
type record struct {
	Started, Finished time.Time
	Machine           []string
	Load              string // average at the end
	Notes             []string
	Scenarios         []string
	Cells             []*cell
}

// A cell is one figure of one candidate, once per round. The rounds of all candidates
// of a case are paired: they were measured one right after the other.
type cell struct {
	Scenario, Case, Cand, Metric, Unit string
	Rounds                             []float64
}

func newRecord() *record {
	return &record{Started: time.Now(), Machine: machine()}
}

func (r *record) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *record) find(scenario, kase, cand, metric string) *cell {
	for _, c := range r.Cells {
		if c.Scenario == scenario && c.Case == kase && c.Cand == cand && c.Metric == metric {
			return c
		}
	}
	return nil
}

func (r *record) add(scenario, kase, cand, metric, unit string, v float64) {
	c := r.find(scenario, kase, cand, metric)
	if c == nil {
		c = &cell{Scenario: scenario, Case: kase, Cand: cand, Metric: metric, Unit: unit}
		r.Cells = append(r.Cells, c)
	}
	c.Rounds = append(c.Rounds, digits(v, 5))
}

// digits rounds v to n of them, for a file of legible size.
func digits(v float64, n int) float64 {
	r, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', n, 64), 64)
	if err != nil {
		return v
	}
	return r
}

// machine describes where the run was made.
func machine() (lines []string) {
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
	lines = append(lines, fmt.Sprintf("%d × %s, load average at the start %s", runtime.NumCPU(), cpuName, load()))
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) == nil {
		lines = append(lines, format(float64(s.Totalram)*float64(s.Unit), "B")+" of memory")
	}
	lines = append(lines, runtime.Version())
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			for _, p := range []string{"gofrs/flock", "go-internal", "go-filemutex", "juju/fslock"} {
				if strings.HasSuffix(m.Path, p) {
					lines = append(lines, m.Path+" "+m.Version)
				}
			}
		}
	}
	return lines
}

func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
