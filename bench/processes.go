//go:build linux

package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

var processesScenario = scenario{
	name:  "processes",
	title: "Processes that take one lock again and again",
	about: "2, 4 and 16 processes lock one file, compute for 0, 5, 50 or 500 µs under the lock, release it and come back at once. Where a candidate can keep the file open between locks, it does. " +
		"This is a counter, a log or a small database that workers share. " +
		"Grants per second of all processes together; the longest wait of any, which counts those that were still waiting when time was up; and the CPU time of all processes that a grant costs, the computing included. " +
		"Who lets a process that has just released the lock take it again at once has the best throughput, and the longest waits.",
	run: (*bench).processes,
}

// What processesJob returns, and bare.c.
type processesResult struct {
	Grants  int64
	Elapsed int64
	CPU     int64
	Longest int64 // wait
}

func processesJob(j *job) (any, error) {
	h, err := find(j.Cand).open(j.Path, false)
	if err != nil {
		return nil, err
	}
	// As a program that could be cancelled.
	ctx, cancel := longContext()
	defer cancel()
	start, err := awaitStart()
	if err != nil {
		return nil, err
	}
	used, end := cpu(), start+int64(j.For)
	var r processesResult
	for {
		before := now()
		if err := h.Lock(ctx); err != nil {
			return nil, err
		}
		t := now()
		r.Longest = max(r.Longest, min(t, end)-before)
		if t < end {
			r.Grants++
			if j.Hold > 0 {
				for until := t + int64(j.Hold); now() < until; {
				}
			}
		}
		if err := h.Unlock(); err != nil {
			return nil, err
		}
		if t >= end {
			r.Elapsed, r.CPU = int64(j.For), cpu()-used
			return r, h.Close()
		}
	}
}

func (b *bench) processes() error {
	cands := b.wants(oursKept, bare, bareStat, bareC, gofrs1, gofrs10, locked)
	if b.quick && b.only == nil {
		cands = b.wants(oursKept, bare, bareStat)
	}
	rounds, length := pick(b, 6, 3, 1), pick(b, 300*time.Millisecond, 60*time.Millisecond, 10*time.Millisecond)
	for _, n := range pick(b, []int{2, 4, 16}, []int{2, 4, 16}, []int{2}) {
		for _, us := range []int{0, 5, 50, 500} {
			kase := fmt.Sprintf("%d processes, %d µs", n, us)
			err := b.rounds(rounds, cands, func(c *candidate) error {
				r, err := b.processesOnce(c, n, time.Duration(us)*time.Microsecond, length)
				if err != nil {
					return err
				}
				b.add(kase, c.name, "throughput", "/s", float64(r.Grants)/(float64(r.Elapsed)/1e9))
				b.add(kase, c.name, "longest wait", "ns", float64(r.Longest))
				b.add(kase, c.name, "CPU per grant", "ns", float64(r.CPU)/float64(max(r.Grants, 1)))
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// processesOnce has n processes at work for length, and adds up what they did.
func (b *bench) processesOnce(c *candidate, n int, hold, length time.Duration) (sum processesResult, err error) {
	path := filepath.Join(b.dir, "processes")
	children, err := startTogether(n, func(int) (*child, error) {
		if c.name == bareC {
			return startCommand(exec.Command(b.bareC, "again", path, strconv.Itoa(int(length)), strconv.Itoa(int(hold))))
		}
		return startJob(job{Do: "processes", Cand: c.name, Path: path, Hold: hold, For: length})
	})
	if err != nil {
		return sum, err
	}
	for _, ch := range children {
		var r processesResult
		if err := ch.wait(&r); err != nil {
			return sum, err
		}
		sum.Grants += r.Grants
		sum.CPU += r.CPU
		sum.Elapsed = max(sum.Elapsed, r.Elapsed)
		sum.Longest = max(sum.Longest, r.Longest)
	}
	return sum, nil
}
