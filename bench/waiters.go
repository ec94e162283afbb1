//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var waitersScenario = scenario{
	name:  "waiters",
	title: "Waiters at rest",
	about: "Goroutines of one process that wait, by path, for files that another process holds and keeps: 100 for one file, and 10 to 10000 for as many files. " +
		"CPU in per cent of a core, threads, resident memory per waiter (after a garbage collection, descriptors of the kernel not counted), " +
		"and the time until all have returned after their context ended. This is a job server with many idle jobs. " +
		"Blocking candidates cost no CPU at rest, a thread each, and cannot be cancelled; they are not run with more than 1000.",
	run: (*bench).waiters,
}

// What waitersJob returns.
type waitersResult struct {
	CPU     int64 // in Elapsed
	Elapsed int64
	Threads int
	Bytes   int64 // resident, more than before
	Cancel  int64 // from cancel to the return of the last, 0 where that is impossible
}

func waitersJob(j *job) (any, error) {
	c := find(j.Cand)
	handles := make([]handle, j.N)
	for i := range handles {
		var err error
		if handles[i], err = c.open(fileName(j.Path, i%j.Files), false); err != nil {
			return nil, err
		}
	}
	var returned atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, j.N)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	debug.FreeOSMemory()
	before, err := resident()
	if err != nil {
		return nil, err
	}
	for i, h := range handles {
		wg.Go(func() {
			errs[i] = h.Lock(ctx)
			returned.Add(1)
		})
	}
	// Until all have opened their file and wait, and longer than any first interval.
	time.Sleep(j.Pause)
	used, start := cpu(), now()
	time.Sleep(j.For)
	r := waitersResult{CPU: cpu() - used, Elapsed: now() - start}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, err
	}
	r.Threads = len(tasks)
	debug.FreeOSMemory() // what came and went with their arrival is not of those at rest
	after, err := resident()
	if err != nil {
		return nil, err
	}
	r.Bytes = after - before
	if n := returned.Load(); n > 0 {
		for _, err := range errs {
			if err != nil {
				return nil, fmt.Errorf("%d of %d returned: %w", n, j.N, err)
			}
		}
		return nil, fmt.Errorf("%d of %d got a lock that is held", n, j.N)
	}
	runtime.KeepAlive(handles)
	if c.cancels {
		start := now()
		cancel()
		wg.Wait()
		r.Cancel = now() - start
	}
	return r, nil
}

// resident returns the resident set of this process in bytes.
func resident() (int64, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}

func (b *bench) waiters() error {
	type size struct{ waiters, files int }
	sizes := pick(b,
		[]size{{100, 1}, {10, 10}, {100, 100}, {1000, 1000}, {3000, 3000}, {10000, 10000}},
		[]size{{100, 1}, {10, 10}, {100, 100}, {3000, 3000}, {10000, 10000}},
		[]size{{20, 1}, {10, 10}, {20, 20}})
	cands := b.wants(ours, oursPoll, gofrs1, gofrs10, locked, fmutex, fsl, bare)
	if b.quick && b.only == nil {
		cands = b.wants(ours, gofrs10)
	}
	length := pick(b, 3*time.Second, 2*time.Second, 50*time.Millisecond)
	for _, s := range sizes {
		if s.files > 1 && !b.smoke {
			length = pick(b, 2*time.Second, time.Second, 0)
			if s.waiters <= 100 {
				length /= 2
			}
		}
		kase := fmt.Sprintf("%d waiters on %d files", s.waiters, s.files)
		if s.files == 1 {
			kase = fmt.Sprintf("%d waiters on one file", s.waiters)
		}
		dir, err := os.MkdirTemp(b.dir, "waiters-")
		if err != nil {
			return err
		}
		path := filepath.Join(dir, "file")
		holder, err := startHolder(path, s.files)
		if err != nil {
			return err
		}
		// What few waiters take is little beside what a process does by itself.
		rounds := 1
		if s.files > 1 && s.waiters <= 100 {
			rounds = pick(b, 3, 2, 1)
		}
		err = b.rounds(rounds, cands, func(c *candidate) error {
			if c.threads && s.waiters > 1000 || b.quick && s.waiters > 1000 && c.name != ours {
				return nil
			}
			settle := pick(b, 700*time.Millisecond, 700*time.Millisecond, 100*time.Millisecond) + time.Duration(s.waiters)*300*time.Microsecond
			r, err := run[waitersResult](job{Do: "waiters", Cand: c.name, Path: path, N: s.waiters, Files: s.files, For: length, Pause: settle})
			if err != nil {
				return err
			}
			b.add(kase, c.name, "CPU", "%", 100*float64(r.CPU)/float64(r.Elapsed))
			b.add(kase, c.name, "threads", "", float64(r.Threads))
			b.add(kase, c.name, "memory each", "B", float64(r.Bytes)/float64(s.waiters))
			if c.cancels {
				b.add(kase, c.name, "all cancelled", "ns", float64(r.Cancel))
			}
			return nil
		})
		if err != nil {
			return err
		}
		holder.stop()
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
