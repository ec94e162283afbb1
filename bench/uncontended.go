//go:build linux

package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

var uncontendedScenario = scenario{
	name:  "uncontended",
	title: "A lock that nobody else wants",
	about: "The price of a lock where there is nothing to wait for: the usual case of most programs. " +
		"By path: open, lock, release, close. Kept: lock and release on an open file, where the candidate can do that; " +
		"the others open and close all the same. One goroutine, one process. " +
		"flockctx opens, then compares device and inode with those of the path after the grant (fstat, stat) and releases with LOCK_UN before close; " +
		"a candidate that leaves this out needs up to three system calls less and wins.",
	run: (*bench).uncontended,
}

func (b *bench) uncontended() error {
	rounds, batches := pick(b, 30, 12, 1), pick(b, 40, 20, 1)
	dirs := []string{b.dir}
	if b.shm != "" {
		dirs = append(dirs, b.shm)
	}
	byPath := b.wants(ours, gofrs1, gofrs10, gofrsStat, gofrsBlk, locked, fmutex, fsl, bare, bareStat, bareC)
	kept := b.wants(oursKept, gofrs1, gofrs10, gofrsBlk, locked, fmutex, fsl, bare, bareStat, bareC)
	// A context that can end, as in a program that uses one.
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	for _, dir := range dirs {
		for _, shared := range []bool{false, true} {
			mode := "exclusive"
			if shared {
				mode = "shared"
			}
			path := filepath.Join(dir, "uncontended-"+mode)
			var c *child
			if b.bareC != "" {
				var err error
				if c, err = startCommand(exec.Command(b.bareC, "time", path)); err != nil {
					return err
				}
			}
			for _, way := range []string{"by path", "kept"} {
				cands := byPath
				if way == "kept" {
					cands = kept
				}
				kase := fmt.Sprintf("%s, %s, %s", way, mode, fileSystem(dir))
				if err := b.timeCalls(ctx, kase, cands, c, path, shared, way == "kept", rounds, batches); err != nil {
					return err
				}
			}
			if c != nil {
				c.stop()
			}
		}
	}
	return nil
}

func (b *bench) timeCalls(ctx context.Context, kase string, cands []*candidate, c *child, path string, shared, kept bool, rounds, batches int) error {
	// A round is the median of batches: none of them so long that it often meets a
	// switch to another process.
	const per = 50
	handles := make(map[string]handle)
	for _, cand := range cands {
		if kept && cand.open != nil {
			h, err := cand.open(path, shared)
			if err != nil {
				return err
			}
			defer h.Close()
			handles[cand.name] = h
		}
	}
	cands = slices.Clone(cands)
	for round := range rounds + 1 { // the first one warms up
		slices.Reverse(cands) // as in bench.rounds
		for _, cand := range cands {
			if shared && cand.name == fsl {
				continue
			}
			times := make([]float64, batches)
			var mallocs, bytes float64
			if cand.name == bareC {
				command := "p"
				if kept {
					command = "k"
				}
				if shared {
					command = strings.ToUpper(command)
				}
				for i := range times {
					fmt.Fprintln(c.stdin, command, per)
					line, err := c.line()
					if err != nil {
						return err
					}
					if times[i], err = strconv.ParseFloat(strings.TrimSpace(line), 64); err != nil {
						return err
					}
				}
			} else {
				h := handles[cand.name]
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for i := range times {
					start := now()
					for range per {
						var err error
						if kept {
							if err = h.Lock(ctx); err == nil {
								err = h.Unlock()
							}
						} else {
							err = cand.once(ctx, path, shared)
						}
						if err != nil {
							return fmt.Errorf("%s: %w", cand.name, err)
						}
					}
					times[i] = float64(now() - start)
				}
				runtime.ReadMemStats(&after)
				calls := float64(batches * per)
				mallocs = float64(after.Mallocs-before.Mallocs) / calls
				bytes = float64(after.TotalAlloc-before.TotalAlloc) / calls
			}
			if round == 0 && rounds > 1 {
				continue
			}
			b.add(kase, cand.name, "lock and release", "ns", median(times)/per)
			if cand.name != bareC {
				b.add(kase, cand.name, "allocations", "", float64(int(mallocs+0.5)))
				b.add(kase, cand.name, "bytes", "B", float64(int(bytes+0.5)))
			}
		}
	}
	return nil
}
