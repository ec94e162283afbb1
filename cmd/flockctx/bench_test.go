package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkSlots runs twelve commands that take no time, by six that start them, of which
// three may be inside at a time: with --slots, and with sem of GNU parallel. The two take
// turns. What it reports is how long one command takes, and of the processor.
func BenchmarkSlots(b *testing.B) {
	sem, err := exec.LookPath("sem")
	if err != nil {
		b.Skipf("SKIP: GNU parallel is not installed: %v", err)
	}
	dir := b.TempDir()
	ways := []struct {
		name string
		argv []string
		took []time.Duration
		cpu  time.Duration
		n    int
	}{
		{name: "flockctx", argv: []string{flockctxPath, "--slots", "3", filepath.Join(dir, "x"), "true"}},
		{name: "sem", argv: []string{sem, "--fg", "--id", "bench", "-j3", "true"}},
	}
	const starters, each = 6, 2
	for b.Loop() {
		for i := range ways {
			w := &ways[i]
			var mu sync.Mutex // guards w.cpu
			var wg sync.WaitGroup
			began := time.Now()
			for range starters {
				wg.Go(func() {
					for range each {
						cmd := exec.Command(w.argv[0], w.argv[1:]...)
						cmd.Env = append(os.Environ(), "HOME="+dir)
						if out, err := cmd.CombinedOutput(); err != nil {
							b.Errorf("%s: %v: %s", w.name, err, out)
						}
						mu.Lock()
						w.cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
						w.n++
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			w.took = append(w.took, time.Since(began)/(starters*each))
		}
	}
	for _, w := range ways {
		slices.Sort(w.took)
		b.ReportMetric(float64(w.took[len(w.took)/2].Microseconds())/1000, w.name+"-ms")
		b.ReportMetric(float64((w.cpu/time.Duration(w.n)).Microseconds())/1000, w.name+"-cpu-ms")
	}
	b.ReportMetric(0, "ns/op")
}
