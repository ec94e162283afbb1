//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/juju/fslock"
)

var cancelScenario = scenario{
	name:  "cancel",
	title: "From cancel to return",
	about: "A goroutine waits for a lock, its context is cancelled, and Lock returns: while it is parked behind a goroutine of its process, " +
		"while it waits in the kernel for another process, and while it polls. This is what a user waits for after Ctrl-C. " +
		"A poller sits in a select and has it easiest. fslock has a timeout only: measured is how late it comes, " +
		"and it leaves a thread behind that waits on. The blocking candidates cannot be cancelled at all.",
	run: (*bench).cancel,
}

func cancelJob(j *job) (any, error) {
	var samples []int64
	if j.Cand == fsl {
		for range j.N {
			l, d := fslock.New(j.Path), 2*time.Millisecond
			start := now()
			err := l.LockWithTimeout(d)
			samples = append(samples, now()-start-int64(d))
			if err != fslock.ErrTimeout {
				return nil, fmt.Errorf("no timeout: %v", err)
			}
		}
		return samples, nil
	}
	c := find(j.Cand)
	if j.Case == "parked" {
		holder, err := c.open(j.Path, false)
		if err != nil {
			return nil, err
		}
		if err := holder.Lock(context.Background()); err != nil {
			return nil, err
		}
		defer holder.Unlock()
	}
	h, err := c.open(j.Path, false)
	if err != nil {
		return nil, err
	}
	for range j.N {
		ctx, cancel := context.WithCancel(context.Background())
		back := make(chan int64)
		var lockErr error
		go func() {
			lockErr = h.Lock(ctx)
			back <- now()
		}()
		time.Sleep(500*time.Microsecond + rand.N(time.Millisecond))
		t := now()
		cancel()
		samples = append(samples, <-back-t)
		if lockErr == nil {
			return nil, fmt.Errorf("got a lock that is held")
		}
	}
	return samples, nil
}

func (b *bench) cancel() error {
	rounds, per := pick(b, 5, 2, 1), pick(b, 1000, 1000, 3)
	parked, waiting := b.wants(oursKept, gofrs1, gofrs10), b.wants(oursKept, oursPoll, gofrs1, gofrs10, fsl)
	if b.quick && b.only == nil {
		parked, waiting = b.wants(oursKept), b.wants(oursKept, oursPoll)
	}
	for _, k := range []struct {
		name  string
		cands []*candidate
	}{
		{"parked", parked},
		{"another process holds it", waiting},
	} {
		path := filepath.Join(b.dir, "cancel-"+k.name[:6])
		if k.name != "parked" {
			holder, err := startHolder(path, 1)
			if err != nil {
				return err
			}
			defer holder.stop()
		}
		err := b.rounds(rounds, k.cands, func(c *candidate) error {
			per := per
			if c.name == fsl { // each leaves a thread behind
				per = min(per, 100)
			}
			samples, err := run[[]int64](job{Do: "cancel", Cand: c.name, Path: path, N: per, Case: k.name})
			if err != nil {
				return err
			}
			b.addTimes(k.name, c.name, samples)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
