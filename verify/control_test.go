//go:build linux

package verify

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	gofrs "github.com/gofrs/flock"
)

var (
	gofrsMu     sync.Mutex
	gofrsCommon = map[string]*gofrs.Flock{}
)

// operateControl is operate with github.com/gofrs/flock: where the plan removes
// files, each goroutine with handles of its own, as its users do; else all
// goroutines of the process with one handle for each file.
func (c *client) operateControl() {
	t := c.target()
	t.opts.Mode = flockctx.Exclusive
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var l *gofrs.Flock
	if c.Plan.Remove {
		l = gofrs.New(t.path)
	} else {
		gofrsMu.Lock()
		if l = gofrsCommon[t.path]; l == nil {
			l = gofrs.New(t.path)
			gofrsCommon[t.path] = l
		}
		gofrsMu.Unlock()
	}
	e := c.call(t.event("lock"))
	ok, err := l.TryLockContext(ctx, 500*time.Microsecond)
	if err == nil && !ok {
		err = context.DeadlineExceeded
	}
	c.ret(e, err)
	if err != nil {
		return
	}
	incs := 0
	if f, err := os.OpenFile(t.path, os.O_RDWR, 0); err == nil {
		incs = c.work(f, t, false)
		f.Close()
	}
	u := t.event("unlock")
	u.Incs = incs
	u = c.call(u)
	if c.Plan.Remove {
		os.Remove(t.path)
	}
	c.ret(u, l.Unlock())
}

// The harness must find bugs that are known: the same rounds, with the same
// faults, that flockctx passes.
func TestControlShowsKnownBugsElsewhere(t *testing.T) {
	for _, test := range []struct {
		name string
		edit func(*plan)
	}{
		{"a waiter locks a file that the holder removed", func(p *plan) { p.Remove = true }},
		{"goroutines that share a handle are inside together", func(p *plan) { p.Goroutines = 4 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := plan{Seed: *seedFlag, Files: 1, Procs: 3, Goroutines: 2, Millis: 500,
				Mechanisms: []flockctx.Mechanism{flockctx.BSD}, Waits: []flockctx.Wait{flockctx.WaitAuto},
				Hold: 300 * time.Microsecond, Faults: []string{"stop", "gc"}}
			test.edit(&p)
			var sum tally
			if bad := runRound(t, p, &sum, ""); len(bad) > 0 {
				t.Fatalf("flockctx: %s", strings.Join(bad, "\n"))
			}
			end := time.Now().Add(time.Duration(*controlFlag) * time.Second)
			for p.Round = 0; ; p.Round++ {
				bad := runRound(t, p, &sum, "gofrs")
				double := 0
				for _, b := range bad {
					if strings.Contains(b, "held together") {
						double++
					}
				}
				if double > 0 {
					t.Logf("gofrs/flock, round %d: %d pairs of holders at once, %d findings in all; the first: %s", p.Round, double, len(bad), bad[0])
					return
				}
				if time.Now().After(end) {
					t.Fatalf("the harness does not show the bug in %d rounds; findings: %q", p.Round+1, bad)
				}
			}
		})
	}
}
