//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

var slotsScenario = scenario{
	name:  "slots",
	title: "Commands, three at a time",
	about: "Six starters run commands that take no time (true), one after the other each, of which three may be inside at a time: " +
		"by flockctx --slots 3, and by sem --fg -j3 of GNU parallel, which counts in a directory and polls. " +
		"The time from the first start to the last end and the processor's time, both per command.",
	run: (*bench).slots,
}

// The ways to run a command in one of three slots.
const (
	slotsOurs = "flockctx --slots"
	slotsSem  = "sem of GNU parallel"
)

func (b *bench) slots() error {
	home, err := os.MkdirTemp(b.dir, "slots-")
	if err != nil {
		return err
	}
	command := filepath.Join(home, "flockctx")
	if text, err := exec.Command("go", "build", "-C", "../cmd/flockctx", "-o", command, ".").CombinedOutput(); err != nil {
		b.note("left out: %s, which could not be built: %v: %s", slotsOurs, err, text)
		return nil
	}
	type way struct {
		name     string
		starters int
		each     int // commands of one starter
		argv     []string
	}
	ways := []way{{slotsOurs, 6, pick(b, 40, 40, 1), []string{command, "--slots", "3", filepath.Join(home, "slots"), "true"}}}
	if sem, err := exec.LookPath("sem"); err == nil {
		ways = append(ways, way{slotsSem, 6, pick(b, 2, 1, 1), []string{sem, "--fg", "--id", "bench", "-j3", "true"}})
	} else {
		b.note("left out: %s, which is not installed", slotsSem)
	}
	for range pick(b, 5, 1, 1) {
		for _, w := range ways {
			took, used, err := commands(w.argv, home, w.starters, w.each)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			n := float64(w.starters * w.each)
			b.add("6 starters, 3 slots", w.name, "time", "ns", float64(took)/n)
			b.add("6 starters, 3 slots", w.name, "CPU", "ns", float64(used)/n)
		}
	}
	return nil
}

// commands has starters run argv, each so many times, and returns what it all took.
func commands(argv []string, home string, starters, each int) (took, used time.Duration, err error) {
	var mu sync.Mutex // guards used and err
	var wg sync.WaitGroup
	began := time.Now()
	for range starters {
		wg.Go(func() {
			for range each {
				cmd := exec.Command(argv[0], argv[1:]...)
				cmd.Env = append(os.Environ(), "HOME="+home)
				text, cmdErr := cmd.CombinedOutput()
				mu.Lock()
				if cmdErr != nil {
					err = fmt.Errorf("%w: %s", cmdErr, text)
				} else {
					used += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return time.Since(began), used, err
}
