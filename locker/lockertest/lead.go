package lockertest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx/locker"
)

// leader campaigns until its stdin ends. It says "leads SINCE TOKEN" on stdout when a term
// begins, and when its context has ended "led UNTIL": the last time at which the context
// had not. Times are in nanoseconds.
func leader(l locker.Locker) error {
	ctx := untilEOF()
	err := locker.Lead(ctx, l, os.Getenv(nameEnv), func(ctx context.Context) error {
		last := time.Now()
		fmt.Println("leads", last.UnixNano(), tokenOf(ctx))
		for {
			now := time.Now()
			if ctx.Err() != nil {
				break
			}
			last = now
			time.Sleep(time.Millisecond)
		}
		fmt.Println("led", last.UnixNano())
		return nil
	})
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("Lead: %w", err)
}

// A replica is a process that leads or would.
type replica struct {
	*child
	p *Proxy // nil: its network cannot be cut
}

func (s *suite) replica(t testing.TB, name string) replica {
	spec, p := s.faults.Spec, (*Proxy)(nil)
	if s.faults.Through != nil {
		spec, p = s.faults.Through(t)
	}
	return replica{spawn(t, "leader", spec, newResource(t), nameEnv+"="+name), p}
}

// A term begins with the grant, and ends when the leader's context does.
type term struct {
	of    replica
	begin time.Time
	token uint64
}

// leads waits until one of the replicas says that its term has begun.
func leads(t testing.TB, replicas ...replica) (now term) {
	t.Helper()
	eventually(t, func() string {
		for _, r := range replicas {
			if said, ok := r.take("leads"); ok {
				since, token, _ := strings.Cut(said, " ")
				now = term{of: r, begin: unixNano(since)}
				now.token, _ = strconv.ParseUint(token, 10, 64)
				return ""
			}
		}
		return "nobody leads"
	})
	return now
}

func unixNano(s string) time.Time {
	n, _ := strconv.ParseInt(s, 10, 64)
	return time.Unix(0, n)
}

// leaders takes the leadership from one of two replicas, again and again: it is killed,
// stopped for longer than its term, or cut off. The next term must begin after the end of
// the last by its context.
func (s *suite) leaders(t *testing.T) {
	s.needChildren(t)
	changes, pairs := s.faults.Leaders, 1
	if changes == 0 {
		changes = 6
	}
	if changes > 20 { // all of one after the other would take long
		pairs = 5
	}
	gaps := make([]map[string][]time.Duration, pairs)
	t.Run("pairs", func(t *testing.T) {
		for i := range pairs {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				gaps[i] = s.pair(t, fmt.Sprint("lead", i), (changes+pairs-1)/pairs)
			})
		}
	})
	var all []time.Duration
	byFault := map[string][]time.Duration{}
	for _, of := range gaps {
		for how, some := range of {
			byFault[how] = append(byFault[how], some...)
			all = append(all, some...)
		}
	}
	if len(all) == 0 {
		return
	}
	// A busy machine, or a slow disk below the server, can delay a term or two.
	for how, some := range byFault {
		if shortest := slices.Min(some); shortest > s.traits.Cleanup+5*time.Second {
			t.Errorf("%s: nobody led for %v, each time", how, shortest)
		}
	}
	slices.Sort(all)
	t.Logf("%d changes of leader; from the fault to the next term %v (median), at most %v; Cleanup is %v",
		len(all), all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond), s.traits.Cleanup)
}

func (s *suite) pair(t *testing.T, name string, changes int) (gaps map[string][]time.Duration) {
	gaps = map[string][]time.Duration{}
	faults := []string{"kill"}
	if s.traits.CanLose && canFreeze {
		faults = append(faults, "stop")
	}
	if s.traits.CanLose && s.faults.Through != nil {
		faults = append(faults, "cut")
	}
	a, b := s.replica(t, name), s.replica(t, name)
	now := leads(t, a, b)
	for i := range changes {
		if now.of.child != a.child {
			a, b = b, a
		}
		s.queued(t, name, 1)
		how := faults[i%len(faults)]
		begin := time.Now()
		switch how {
		case "kill":
			a.kill()
		case "stop":
			a.freeze()
		case "cut":
			a.p.Swallow([]Direction{Both, ToServer, ToClient}[i%3])
		}
		end := begin // of one that is killed, at the earliest
		next := leads(t, b)
		switch how {
		case "kill":
			a = s.replica(t, name)
		case "stop":
			a.thaw()
			end = unixNano(a.expect("led"))
		case "cut":
			end = unixNano(a.expect("led"))
			a.p.Heal()
		}
		if next.begin.Before(end) {
			t.Errorf("%s: two leaders for %v", how, end.Sub(next.begin))
		}
		if s.traits.Fenced && next.token <= now.token {
			t.Errorf("%s: token %d after %d", how, next.token, now.token)
		}
		gaps[how] = append(gaps[how], next.begin.Sub(begin))
		now = next
	}
	// Lead ends with its ctx.
	for _, r := range []replica{a, b} {
		r.in.Close()
		if err := r.cmd.Wait(); err != nil {
			t.Errorf("a replica: %v, it said %q", err, r.lines)
		}
	}
	return gaps
}
