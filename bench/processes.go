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
	about: "2, 4 and 16 processes of one goroutine, each with a handle that it keeps where the candidate can do that; " +
		"each locks, computes for the section, unlocks, and begins again at once. This is a queue of jobs on disk that several workers take from. " +
		"Throughput of all together, the longest wait of any of them, and the CPU time that a grant costs. " +
		"Who unlocks and locks at once often has the lock again before a waiter is awake: that is fast, and lets the others wait. " +
		"A poller that sleeps leaves the lock to the one that runs, and is fast for the same reason. " +
		"The raw calls with which flockctx compares are flock, stat, flock: those of a lock that verifies its path.",
	run: (*bench).processes,
}

var (
	processCounts = []int{2, 4, 16}
	sections      = []time.Duration{0, 5 * time.Microsecond, 50 * time.Microsecond, 500 * time.Microsecond}
)

func (b *bench) processes() error {
	cands := b.wants(oursKept, ours, gofrs1, gofrs10, locked, bare, bareStat, bareC)
	if b.quick && b.only == nil {
		cands = b.wants(oursKept, gofrs10, bareStat)
	}
	rounds, length := pick(b, 3, 1, 1), pick(b, 400*time.Millisecond, 300*time.Millisecond, 50*time.Millisecond)
	for _, n := range pick(b, processCounts, processCounts[1:2], processCounts[:1]) {
		for _, section := range pick(b, sections, sections, sections[1:2]) {
			kase := fmt.Sprintf("%d processes, section %v", n, section)
			err := b.rounds(rounds, cands, func(c *candidate) error {
				j := job{Do: "goroutines", Cand: c.name, Path: filepath.Join(b.dir, "processes"), N: 1, Hold: section, For: length}
				r, err := b.together(n, j)
				if err != nil {
					return err
				}
				b.add("processes", kase, c.name, "throughput", "/s", float64(r.Grants)/(float64(r.Elapsed)/1e9))
				b.add("processes", kase, c.name, "longest wait", "ns", float64(r.Wait.Max))
				b.add("processes", kase, c.name, "CPU per grant", "ns", float64(r.CPU)/float64(max(r.Grants, 1)))
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// startLoop starts the candidate in C on a job of one goroutine.
func (b *bench) startLoop(j job) (*child, error) {
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	return startCommand(exec.Command(b.bareC, "loop", j.Path, n(j.Start), n(int64(j.For)), n(int64(j.Hold))))
}
