//go:build linux

package main

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

var fairScenario = scenario{
	name:  "fair",
	title: "First come, first served between processes",
	about: "What Options.Fair is for. Processes with one goroutine each, which sleep for 500 µs under the lock and come back at once: " +
		"a writer beside readers of 3 other processes; 16 writers; and 16 processes that lock shared in 99 of 100 cases, exclusive in the others. " +
		"Without Fair readers overtake a writer as long as one of them is inside, and the kernel wakes the writers up as it likes. " +
		"The longest waits count those that were still waiting when time was up, after 1.5 s. " +
		"Last, what Fair costs where nobody else wants the lock: it has to look for others in line.",
	run: (*bench).fair,
}

// What fairJob returns.
type fairResult struct {
	Reads, Writes             int64
	LongestRead, LongestWrite int64 // waits
}

func fairJob(j *job) (any, error) {
	c := find(j.Cand)
	var handles [2]handle
	for i := range handles {
		var err error
		if handles[i], err = c.open(j.Path, i == 1); err != nil {
			return nil, err
		}
	}
	ctx, cancel := longContext()
	defer cancel()
	start, err := awaitStart()
	if err != nil {
		return nil, err
	}
	end, hold, random := start+int64(j.For), unix.NsecToTimespec(int64(j.Hold)), dice(j.Me)
	var r fairResult
	for {
		h, n, longest := handles[0], &r.Writes, &r.LongestWrite
		if random.percent() < j.Read {
			h, n, longest = handles[1], &r.Reads, &r.LongestRead
		}
		before := now()
		if err := h.Lock(ctx); err != nil {
			return nil, err
		}
		t := now()
		*longest = max(*longest, min(t, end)-before)
		if t < end {
			*n++
			unix.Nanosleep(&hold, nil)
		}
		if err := h.Unlock(); err != nil {
			return nil, err
		}
		if t >= end {
			return r, nil
		}
	}
}

// dice are thrown alike in every run.
type dice uint32

// percent returns a number from 0 to 99.
func (d *dice) percent() int {
	x := uint32(*d)*2654435761 | 1
	for range 3 {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
	}
	*d = dice(x)
	return int(x % 100)
}

func (b *bench) fair() error {
	cands := b.wants(oursFair, oursKept, bare, gofrs1, gofrs10)
	if b.quick && b.only == nil {
		cands = b.wants(oursFair, oursKept)
	}
	if l, err := flockctx.TryLock(filepath.Join(b.dir, "fair"), &flockctx.Options{Fair: true}); err != nil {
		b.note("left out: %s, which does not work here: %v", oursFair, err)
		return nil
	} else if err := l.Close(); err != nil {
		return err
	}
	length := pick(b, 1500*time.Millisecond, 1500*time.Millisecond, 20*time.Millisecond)
	path := filepath.Join(b.dir, "fair")
	for _, k := range []struct {
		name string
		read []int // the percentage of each process
	}{
		{"a writer beside readers of 3 processes", []int{0, 100, 100, 100}},
		{"16 writers", make([]int, 16)},
		{"99:1, 16 processes", repeat(99, 16)},
	} {
		err := b.rounds(pick(b, 3, 1, 1), cands, func(c *candidate) error {
			children, err := startTogether(len(k.read), func(i int) (*child, error) {
				return startJob(job{Do: "fair", Cand: c.name, Path: path, Me: i + 1, Read: k.read[i], Hold: 500 * time.Microsecond, For: length})
			})
			if err != nil {
				return err
			}
			var sum fairResult
			for _, ch := range children {
				var r fairResult
				if err := ch.wait(&r); err != nil {
					return err
				}
				sum.Reads += r.Reads
				sum.Writes += r.Writes
				sum.LongestRead = max(sum.LongestRead, r.LongestRead)
				sum.LongestWrite = max(sum.LongestWrite, r.LongestWrite)
			}
			s := length.Seconds()
			b.add(k.name, c.name, "throughput", "/s", float64(sum.Reads+sum.Writes)/s)
			b.add(k.name, c.name, "write throughput", "/s", float64(sum.Writes)/s)
			b.add(k.name, c.name, "longest wait to write", "ns", float64(sum.LongestWrite))
			if k.read[len(k.read)-1] > 0 {
				b.add(k.name, c.name, "longest wait to read", "ns", float64(sum.LongestRead))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	ctx, cancel := longContext()
	defer cancel()
	rounds, batches := pick(b, 20, 10, 1), pick(b, 40, 20, 1)
	for _, mode := range []string{"exclusive", "shared"} {
		kase := fmt.Sprintf("nobody else, kept, %s, %s", mode, fileSystem(b.dir))
		if err := b.timeCalls(ctx, kase, b.wants(oursFair, oursKept, bare, bareStat), nil, path, mode == "shared", true, rounds, batches); err != nil {
			return err
		}
	}
	return nil
}

func repeat(v, n int) []int {
	r := make([]int, n)
	for i := range r {
		r[i] = v
	}
	return r
}
