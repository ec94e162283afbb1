//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

var goroutinesScenario = scenario{
	name:  "goroutines",
	title: "Goroutines of one process",
	about: "Goroutines that lock the same file again and again, each with a handle of its own, holding it for a time in which they compute. " +
		"This is a server that guards a file. Throughput, waits, and the CPU time that a grant costs. " +
		"The longest wait counts those that were still waiting when time was up; it can be no longer than the run. " +
		"A poller lets whoever runs take the lock again and again while all others sleep, which is fast and starves them; " +
		"blocking candidates take a thread per waiter, and are not run with more than 256. (gofrs Lock does what lockedfile does, and is left out from here on.)",
	run: (*bench).goroutines,
}

var foreignScenario = scenario{
	name:  "foreign",
	title: "A second process that wants the lock too",
	about: "Goroutines of one process saturate the lock; one goroutine of another process wants it too, with the same candidate or with flock(2), " +
		"1 ms after it had it last. How often each gets it, and how long the other one waits. " +
		"This is a busy server and a maintenance script. What costs nothing in the busy process starves the other.",
	run: (*bench).foreign,
}

// What goroutinesJob returns.
type goroutinesResult struct {
	Grants   int64
	Elapsed  int64     // from the common start
	CPU      int64     // of the process, meanwhile
	Wait     histogram // for the lock
	HandOver histogram // from a release to the next grant, whoever gets it
	Switch   histogram // the same where another goroutine gets it
	Read     histogram // Wait of shared locks
	Write    histogram
}

func goroutinesJob(j *job) (any, error) {
	type worker struct {
		wait, over, change, read, write tally
		grants                          int64
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := find(j.Cand)
	handles := make([][2]handle, j.N)
	for i := range handles {
		var err error
		if j.Read < 100 {
			if handles[i][0], err = c.open(j.Path, false); err != nil {
				return nil, err
			}
		}
		if j.Read > 0 {
			if handles[i][1], err = c.open(j.Path, true); err != nil {
				return nil, err
			}
		}
	}
	workers := make([]*worker, j.N)
	for i := range workers {
		workers[i] = new(worker)
	}
	var released, last atomic.Int64
	var stop atomic.Bool
	var failure atomic.Pointer[error]
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range j.N {
		wg.Go(func() {
			w, me := workers[i], int64(i+1)
			random := uint32(i)*2654435761 + 1
			<-begin
			for !stop.Load() {
				h, shared := handles[i][0], false
				if j.Read > 0 {
					random ^= random << 13
					random ^= random >> 17
					random ^= random << 5
					if shared = int(random%100) < j.Read; shared {
						h = handles[i][1]
					}
				}
				start := now()
				err := h.Lock(ctx)
				t := now()
				if err != nil {
					if stop.Load() { // it waited until time was up
						w.wait.max = max(w.wait.max, t-start)
						if shared {
							w.read.max = max(w.read.max, t-start)
						} else {
							w.write.max = max(w.write.max, t-start)
						}
						return
					}
					failure.Store(&err)
					return
				}
				w.wait.add(t - start)
				if shared {
					w.read.add(t - start)
				} else {
					w.write.add(t - start)
				}
				if j.Read == 0 {
					if r := released.Load(); r != 0 {
						w.over.add(t - r)
						if last.Load() != me {
							w.change.add(t - r)
						}
					}
					last.Store(me)
				}
				if !stop.Load() {
					w.grants++
				}
				if j.Hold > 0 {
					for end := t + int64(j.Hold); now() < end; {
					}
				}
				if j.Read == 0 {
					released.Store(now())
				}
				if err := h.Unlock(); err != nil {
					failure.Store(&err)
					return
				}
				if j.Pause > 0 {
					time.Sleep(j.Pause)
				}
			}
		})
	}
	time.Sleep(time.Duration(j.Start - now()))
	used, start := cpu(), now()
	close(begin)
	time.Sleep(j.For)
	stop.Store(true)
	r := goroutinesResult{Elapsed: now() - start, CPU: cpu() - used}
	cancel()
	wg.Wait()
	if err := failure.Load(); err != nil {
		return nil, *err
	}
	for _, w := range workers {
		r.Grants += w.grants
		r.Wait.addTally(&w.wait)
		r.HandOver.addTally(&w.over)
		r.Switch.addTally(&w.change)
		r.Read.addTally(&w.read)
		r.Write.addTally(&w.write)
	}
	return r, nil
}

// maxThreads is how many waiters may take a thread each.
const maxThreads = 256

func (b *bench) goroutines() error {
	cands := b.wants(ours, oursKept, gofrs1, gofrs10, locked, fmutex, fsl, bare)
	us := time.Microsecond
	sizes := pick(b, []int{16, 256, 4096}, []int{16, 256}, []int{4, 16})
	holds := pick(b, []time.Duration{0, 100 * us, 1000 * us}, []time.Duration{0, 100 * us}, []time.Duration{0, 100 * us})
	if b.quick && b.only == nil {
		cands = b.wants(ours, oursKept, gofrs10)
	}
	for _, n := range sizes {
		for _, hold := range holds {
			rounds, length := pick(b, 3, 2, 1), pick(b, 250*time.Millisecond, 250*time.Millisecond, 20*time.Millisecond)
			switch { // the longest wait needs its time
			case b.smoke:
			case n == 256 && (hold == 0 || hold == 100*us): // of which there are targets
				length *= 6
			case n >= 256:
				length *= time.Duration(min(n/128, 4))
			}
			kase := fmt.Sprintf("%d goroutines, hold %v", n, hold)
			err := b.rounds(rounds, cands, func(c *candidate) error {
				if c.threads && n > maxThreads {
					return nil
				}
				r, err := run[goroutinesResult](job{Do: "goroutines", Cand: c.name, Path: filepath.Join(b.dir, "goroutines"),
					N: n, Hold: hold, For: length, Start: now() + int64(50*time.Millisecond)})
				if err != nil {
					return err
				}
				s := float64(r.Elapsed) / 1e9
				b.add(kase, c.name, "throughput", "/s", float64(r.Grants)/s)
				b.add(kase, c.name, "wait p50", "ns", r.Wait.quantile(0.5))
				b.add(kase, c.name, "wait p99", "ns", r.Wait.quantile(0.99))
				b.add(kase, c.name, "longest wait", "ns", float64(r.Wait.Max))
				b.add(kase, c.name, "hand-over p50", "ns", r.HandOver.quantile(0.5))
				b.add(kase, c.name, "to another p50", "ns", r.Switch.quantile(0.5))
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

func (b *bench) foreign() error {
	cands := b.wants(ours, oursKept, oursBare, gofrs1, gofrs10, locked, fmutex, fsl, bare)
	if b.quick && b.only == nil {
		cands = b.wants(ours, gofrs10, bare)
	}
	us := time.Microsecond
	sizes := pick(b, []int{1, 64, 256}, []int{64}, []int{64})
	holds := pick(b, []time.Duration{0, 100 * us}, []time.Duration{0, 100 * us}, []time.Duration{0})
	rounds, length := pick(b, 2, 1, 1), pick(b, 2*time.Second, time.Second, 50*time.Millisecond)
	for _, n := range sizes {
		if n != 64 && !b.smoke {
			length = time.Second
		}
		for _, hold := range holds {
			kase := fmt.Sprintf("%d goroutines, hold %v", n, hold)
			err := b.rounds(rounds, cands, func(c *candidate) error {
				busy := job{Do: "goroutines", Cand: c.name, Path: filepath.Join(b.dir, "foreign"),
					N: n, Hold: hold, For: length, Start: now() + int64(80*time.Millisecond)}
				other := busy
				other.N, other.Pause = 1, time.Millisecond
				if c.name == oursBare {
					other.Cand = bare
				}
				ch, err := startJob(other)
				if err != nil {
					return err
				}
				r, err := run[goroutinesResult](busy)
				if err != nil {
					return err
				}
				var o goroutinesResult
				if err := ch.wait(&o); err != nil {
					return err
				}
				s := float64(o.Elapsed) / 1e9
				b.add(kase, c.name, "grants to the other in 2 s", "", float64(o.Grants)/s*2)
				b.add(kase, c.name, "its wait p50", "ns", o.Wait.quantile(0.5))
				b.add(kase, c.name, "its longest wait", "ns", float64(o.Wait.Max))
				b.add(kase, c.name, "throughput here", "/s", float64(r.Grants)/(float64(r.Elapsed)/1e9))
				b.add(kase, c.name, "longest wait here", "ns", float64(r.Wait.Max))
				return nil
			})
			if err != nil {
				return err
			}
		}
		length = pick(b, 2*time.Second, time.Second, 50*time.Millisecond)
	}
	os.Remove(filepath.Join(b.dir, "foreign"))
	return nil
}
