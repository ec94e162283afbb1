//go:build linux

package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/flockctx/flockctx"
)

var fairScenario = scenario{
	name:  "fair",
	title: "First come, first served between processes",
	about: "What Options.Fair buys and costs, beside flockctx without it and bare flock(2), all on files that are kept open. " +
		"A writer that locks for 0.5 ms beside one reader in each of 3 other processes that do the same; 16 processes that write for 0.5 ms, asleep; " +
		"4 processes with 16 goroutines each, of which one lock in a hundred is exclusive, for 10 µs; and one goroutine alone. " +
		"Without Fair the kernel lets readers overtake a writer for as long as their locks overlap. " +
		"How many times better is said of flockctx fair here.",
	run: (*bench).fair,
}

// The cases.
const (
	fairWriter  = "a writer beside readers of 3 processes"
	fairWriters = "16 writers"
	fairMixed   = "99:1, 4 processes with 16 goroutines each"
	fairAlone   = "alone"
)

func (b *bench) fair() error {
	path := filepath.Join(b.dir, "fair")
	if l, err := flockctx.Lock(context.Background(), path, &flockctx.Options{Fair: true}); errors.Is(err, errors.ErrUnsupported) {
		b.note("no scenario fair: %v", err)
		return nil
	} else if err != nil {
		return err
	} else if err := l.Close(); err != nil {
		return err
	}
	cands := b.wants(oursFair, oursKept, bare)
	rounds := pick(b, 5, 2, 1)
	const hold, short = 500 * time.Microsecond, 10 * time.Microsecond
	for _, k := range []struct {
		name string
		jobs []job
		time time.Duration
	}{
		{fairWriter, append(repeat(3, job{N: 1, Hold: hold, Asleep: true, Read: 100}), job{N: 1, Hold: hold, Asleep: true}), 1500 * time.Millisecond},
		{fairWriters, repeat(16, job{N: 1, Hold: hold, Asleep: true}), 1500 * time.Millisecond},
		{fairMixed, repeat(4, job{N: 16, Hold: short, Read: 99}), 600 * time.Millisecond},
		{fairAlone, repeat(1, job{N: 1}), 300 * time.Millisecond},
	} {
		err := b.rounds(rounds, cands, func(c *candidate) error {
			jobs := make([]job, len(k.jobs))
			for i, j := range k.jobs {
				j.Do, j.Cand, j.Path, j.For = "goroutines", c.name, path, pick(b, k.time, k.time, 50*time.Millisecond)
				jobs[i] = j
			}
			r, err := b.atOnce(jobs)
			if err != nil {
				return err
			}
			s := float64(r.Elapsed) / 1e9
			b.add("fair", k.name, c.name, "throughput", "/s", float64(r.Grants)/s)
			if k.name == fairAlone {
				return nil
			}
			b.add("fair", k.name, c.name, "writer's throughput", "/s", float64(r.Write.N)/s)
			b.add("fair", k.name, c.name, "longest wait to write", "ns", float64(r.Write.Max))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func repeat(n int, j job) (jobs []job) {
	for range n {
		jobs = append(jobs, j)
	}
	return jobs
}
