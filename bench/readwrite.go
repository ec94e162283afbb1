//go:build linux

package main

import (
	"fmt"
	"path/filepath"
	"time"
)

var readwriteScenario = scenario{
	name:  "readwrite",
	title: "Readers and writers",
	about: "Goroutines that lock the same file shared or exclusive, as a throw of dice decides, and compute for 10 µs under the lock: " +
		"64 goroutines of one process, and 16 in each of 4 processes. This is a cache on disk. " +
		"flockctx keeps the readers of its own process from starving its writers; readers of other processes may overtake them, as flock(2) lets them. " +
		"Candidates that let readers overtake everywhere read more. fslock cannot lock shared.",
	run: (*bench).readwrite,
}

func (b *bench) readwrite() error {
	const hold = 10 * time.Microsecond
	cands := b.wants(ours, oursKept, gofrs1, gofrs10, locked, fmutex, bare)
	if b.quick && b.only == nil {
		cands = b.wants(oursKept, bare)
	}
	rounds, length := pick(b, 5, 2, 1), pick(b, 600*time.Millisecond, 500*time.Millisecond, 50*time.Millisecond)
	for _, processes := range pick(b, []int{1, 4}, []int{1, 4}, []int{1}) {
		for _, read := range []int{99, 50} {
			n := 64 / processes
			kase := fmt.Sprintf("%d:%d, %d processes with %d goroutines each", read, 100-read, processes, n)
			if processes == 1 {
				kase = fmt.Sprintf("%d:%d, %d goroutines of one process", read, 100-read, n)
			}
			err := b.rounds(rounds, cands, func(c *candidate) error {
				r, err := b.together(processes, job{Do: "goroutines", Cand: c.name, Path: filepath.Join(b.dir, "readwrite"),
					N: n, Hold: hold, Read: read, For: length})
				if err != nil {
					return err
				}
				s := float64(r.Elapsed) / 1e9
				b.add(kase, c.name, "throughput", "/s", float64(r.Read.N+r.Write.N)/s)
				b.add(kase, c.name, "read throughput", "/s", float64(r.Read.N)/s)
				b.add(kase, c.name, "write throughput", "/s", float64(r.Write.N)/s)
				b.add(kase, c.name, "longest wait to read", "ns", float64(r.Read.Max))
				b.add(kase, c.name, "write wait p50", "ns", r.Write.quantile(0.5))
				b.add(kase, c.name, "longest wait to write", "ns", float64(r.Write.Max))
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// together runs the same goroutines in several processes at the same time, and adds up.
func (b *bench) together(processes int, j job) (sum goroutinesResult, err error) {
	j.Start = now() + int64(50*time.Millisecond)*int64(1+processes)/2
	var children []*child
	for range processes {
		c, err := startJob(j)
		if err != nil {
			return sum, err
		}
		children = append(children, c)
	}
	for _, c := range children {
		var r goroutinesResult
		if err := c.wait(&r); err != nil {
			return sum, err
		}
		sum.Grants += r.Grants
		sum.CPU += r.CPU
		sum.Elapsed = max(sum.Elapsed, r.Elapsed)
		sum.Wait.add(r.Wait)
		sum.Read.add(r.Read)
		sum.Write.add(r.Write)
	}
	return sum, nil
}
