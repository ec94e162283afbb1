//go:build linux

package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// clean checks at the end of the test that it has left nothing behind.
func clean(t *testing.T) {
	// Threads that the first waits need stay with Go's runtime.
	before := measure()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		if err := leftBehind(before, before.Threads+40); err != nil {
			t.Error(err)
		}
	})
}

// describe says what some durations are: too few of them for other quantiles.
func describe(ds []time.Duration) (median, longest time.Duration) {
	slices.Sort(ds)
	return ds[len(ds)/2], ds[len(ds)-1]
}

func TestLockOfAKilledHolderIsFreeAtOnce(t *testing.T) {
	eachWay(t, func(t *testing.T, o flockctx.Options) {
		clean(t)
		path := filepath.Join(t.TempDir(), "lock")
		waiter := newPeer(t)
		defer waiter.kill()
		var took []time.Duration
		for range 20 {
			holder := newPeer(t)
			holder.must("ok", order{Do: "lock", Path: path, Opts: o})
			waiter.start(order{Do: "lock", Path: path, Opts: o, Timeout: time.Minute})
			waiter.waits(o.Wait)
			began := monotonic()
			holder.kill()
			a := waiter.answer()
			if a.Result != "ok" {
				t.Fatalf("after the holder's death: %s (%s)", a.Result, a.Error)
			}
			if a.At < began {
				t.Fatal("granted while the holder lived")
			}
			took = append(took, time.Duration(a.At-began))
			waiter.must("ok", order{Do: "close"})
		}
		median, longest := describe(took)
		t.Logf("FIGURE kill to next grant, %v %v: median %v, longest %v of %d", o.Mechanism, o.Wait, median, longest, len(took))
		if longest > 5*time.Second {
			t.Errorf("a killed holder kept the lock for %v", longest)
		}
	})
}

func TestKilledWaiterLeavesNothing(t *testing.T) {
	eachWay(t, func(t *testing.T, o flockctx.Options) {
		clean(t)
		path := filepath.Join(t.TempDir(), "lock")
		l, err := flockctx.Lock(t.Context(), path, &o)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			waiter := newPeer(t)
			waiter.start(order{Do: "lock", Path: path, Opts: o})
			waiter.waits(o.Wait)
			waiter.kill()
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		mustTry(t, "ok", path, o)
	})
}

func TestStoppedHolderKeepsTheLock(t *testing.T) {
	eachWay(t, func(t *testing.T, o flockctx.Options) {
		clean(t)
		path := filepath.Join(t.TempDir(), "lock")
		holder := newPeer(t)
		defer holder.kill()
		holder.must("ok", order{Do: "lock", Path: path, Opts: o})
		holder.stop()
		_, err := flockctx.Lock(within(t, 30*time.Millisecond), path, &o)
		if outcome(err) != "ended" {
			t.Fatalf("beside a stopped holder: %v", err)
		}
		unix.Kill(holder.pid(), unix.SIGCONT)
		holder.must("ok", order{Do: "close"})
		mustTry(t, "ok", path, o)
	})
}

// A waiter that is stopped inside the kernel must not keep the lock from others,
// wait on when it continues, and notice a deadline that passed meanwhile.
func TestStoppedWaiter(t *testing.T) {
	eachWay(t, func(t *testing.T, o flockctx.Options) {
		clean(t)
		path := filepath.Join(t.TempDir(), "lock")
		waiter := newPeer(t)
		defer waiter.kill()
		for _, timeout := range []time.Duration{time.Minute, 50 * time.Millisecond} {
			l, err := flockctx.Lock(t.Context(), path, &o)
			if err != nil {
				t.Fatal(err)
			}
			waiter.start(order{Do: "lock", Path: path, Opts: o, Timeout: timeout})
			if timeout == time.Minute {
				waiter.waits(o.Wait)
			}
			waiter.stop()
			if err := l.Unlock(); err != nil {
				t.Fatal(err)
			}
			if timeout == time.Minute {
				if err := l.Lock(within(t, 10*time.Second)); err != nil {
					t.Fatalf("a stopped waiter keeps the lock: %v", err)
				}
			} else {
				time.Sleep(2 * timeout)
			}
			unix.Kill(waiter.pid(), unix.SIGCONT)
			if timeout == time.Minute {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				if a := waiter.answer(); a.Result != "ok" {
					t.Fatalf("after it continued: %s (%s)", a.Result, a.Error)
				}
				waiter.must("ok", order{Do: "close"})
				continue
			}
			l.Close()
			switch a := waiter.answer(); a.Result {
			case "ended":
			case "ok": // granted before it stopped
				waiter.must("ok", order{Do: "close"})
			default:
				t.Fatalf("after its deadline passed while it was stopped: %s (%s)", a.Result, a.Error)
			}
			mustTry(t, "ok", path, o)
		}
	})
}

// The end of ctx and the grant must meet at every point of the acquisition: with a
// lock that comes and goes, and with one that never comes.
func TestContextEndsAtEveryPoint(t *testing.T) {
	const steps = 500
	eachWay(t, func(t *testing.T, o flockctx.Options) {
		for _, other := range []string{"another process toggles", "another process holds", "a goroutine toggles", "a goroutine holds"} {
			t.Run(other, func(t *testing.T) {
				clean(t)
				path := filepath.Join(t.TempDir(), "lock")
				c := toggleConfig{path, o}
				stop := func() {}
				switch other {
				case "another process toggles":
					h := startHelper(t, nil, "toggle", c)
					h.expect(t, "ready")
					stop = h.kill
				case "another process holds":
					p := newPeer(t)
					p.must("ok", order{Do: "lock", Path: path, Opts: o})
					stop = p.kill
				case "a goroutine toggles":
					ctx, cancel := context.WithCancel(context.Background())
					var wg sync.WaitGroup
					wg.Go(func() {
						if err := toggle(ctx, c); err != nil {
							t.Error(err)
						}
					})
					stop = func() { cancel(); wg.Wait() }
				case "a goroutine holds":
					l, err := flockctx.Lock(t.Context(), path, &o)
					if err != nil {
						t.Fatal(err)
					}
					stop = func() { l.Close() }
				}
				defer stop()
				granted, late := 0, []time.Duration{}
				handle := flockctx.New(path, &o)
				for i := range steps {
					d := time.Duration(i) * time.Microsecond
					// A timer of Go's can be 1 ms late; a goroutine that spins is not.
					ctx, cancel := context.WithCancel(context.Background())
					began := time.Now()
					canceled := make(chan struct{})
					go func() {
						defer close(canceled)
						for time.Since(began) < d {
							runtime.Gosched()
						}
						cancel()
					}()
					err := handle.Lock(ctx)
					took := time.Since(began)
					<-canceled
					switch outcome(err) {
					case "ok":
						granted++
						if err := handle.Unlock(); err != nil {
							t.Fatal(err)
						}
					case "ended":
						late = append(late, took-d)
						if took < d {
							t.Fatalf("ended after %v, canceled after %v", took, d)
						}
						if handle.Locked() {
							t.Fatal("ended, and locked")
						}
					default:
						t.Fatalf("step %v: %v", d, err)
					}
					if strings.HasPrefix(other, "another") && i%25 == 0 && slices.Contains(locksOf(t, path), os.Getpid()) {
						t.Fatalf("step %v: this process still holds the lock (%v)", d, err)
					}
				}
				stop()
				if err := handle.Close(); err != nil {
					t.Fatal(err)
				}
				mustTry(t, "ok", path, o)
				if strings.HasSuffix(other, "holds") && granted > 0 {
					t.Fatalf("%d granted beside a holder", granted)
				}
				if len(late) > 0 {
					median, longest := describe(late)
					t.Logf("FIGURE ctx in 1 µs steps, %v %v, %s: %d granted, %d ended; after cancel: median %v, longest %v",
						o.Mechanism, o.Wait, other, granted, len(late), median, longest)
				}
			})
		}
	})
}

// pause waits without the system's timers, which are too coarse for it.
func pause(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		runtime.Gosched()
	}
}

// locksOf returns the processes that /proc/locks says hold a lock on the file.
func locksOf(t testing.TB, path string) (pids []int) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil
	}
	return lockers(t, st)
}

func TestDescriptorsExhausted(t *testing.T) {
	eachWay(t, func(t *testing.T, o flockctx.Options) {
		clean(t)
		dir := t.TempDir()
		path := filepath.Join(dir, "lock")
		kept, err := flockctx.Lock(t.Context(), filepath.Join(dir, "kept"), &o)
		if err != nil {
			t.Fatal(err)
		}
		defer kept.Close()
		var old unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		none := old
		none.Cur = 3
		set := func(l unix.Rlimit) {
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
				t.Fatal(err)
			}
		}
		set(none)
		_, err = flockctx.Lock(t.Context(), path, &o)
		tryErr := func() error { _, err := flockctx.TryLock(path, &o); return err }()
		_, setErr := flockctx.LockAll(t.Context(), []string{path, path + "2"}, &o)
		// What is open already needs no descriptor.
		unlockErr := kept.Unlock()
		lockErr := kept.Lock(t.Context())
		set(old)
		for _, err := range []error{err, tryErr, setErr} {
			if !errors.Is(err, syscall.EMFILE) || outcome(err) != "error" || !strings.Contains(err.Error(), path) {
				t.Errorf("without descriptors: %v", err)
			}
		}
		if unlockErr != nil || lockErr != nil {
			t.Errorf("an open handle without descriptors: unlock %v, lock %v", unlockErr, lockErr)
		}
		mustTry(t, "ok", path, o)
	})
}

// Children that are forked all the time must not keep a lock after Unlock: between
// fork and exec they share every open file description.
func TestChildrenForkedAllTheTime(t *testing.T) {
	eachWay(t, func(t *testing.T, o flockctx.Options) {
		path := filepath.Join(t.TempDir(), "lock")
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						exec.Command("/bin/true").Run()
					}
				}
			})
		}
		defer func() { close(stop); wg.Wait() }()
		other := newPeer(t)
		defer other.kill()
		for i := range 150 {
			l, err := flockctx.Lock(t.Context(), path, &o)
			if err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				err = l.Unlock()
			} else {
				err = l.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			a := other.do(order{Do: "try", Path: path, Opts: o})
			if a.Result != "ok" {
				t.Fatalf("try %d after the release: %s", i, a.Result)
			}
			other.must("ok", order{Do: "close"})
			l.Close()
		}
	})
}

// The collector must not take a held lock away, and must give back the descriptors
// of forgotten unlocked handles. It runs in a process of its own, since nothing but
// its end releases the lock of a forgotten handle.
func TestCollectorForced(t *testing.T) {
	eachWay(t, func(t *testing.T, o flockctx.Options) {
		path := filepath.Join(t.TempDir(), "lock")
		h := startHelper(t, nil, "forget", toggleConfig{path, o})
		h.expect(t, "forgotten")
		mustTry(t, "busy", path, o)
		h.say("end")
		<-h.gone
		if h.err != nil {
			t.Fatalf("%v\n%s", h.err, h.stderr.String())
		}
		mustTry(t, "ok", path, o)
	})
}

func init() {
	helpers["forget"] = func(raw json.RawMessage) error {
		var c toggleConfig
		if err := json.Unmarshal(raw, &c); err != nil {
			return err
		}
		debug.SetGCPercent(1)
		if _, err := flockctx.Lock(context.Background(), c.Path, &c.Opts); err != nil {
			return err
		}
		before := measure()
		for range 50 {
			l := flockctx.New(c.Path+"2", &c.Opts)
			if err := l.Lock(context.Background()); err != nil {
				return err
			}
			if err := l.Unlock(); err != nil {
				return err
			}
			runtime.GC()
			if _, err := flockctx.TryLock(c.Path, &c.Opts); !errors.Is(err, flockctx.ErrLocked) {
				return fmt.Errorf("the lock of a forgotten handle is gone: %v", err)
			}
		}
		// Reading standard input may need the poller's descriptors.
		before.Descriptors += 2
		if err := leftBehind(before, before.Threads+16); err != nil {
			return err
		}
		fmt.Println("forgotten")
		fmt.Scanln(new(string))
		return nil
	}
}

// The release, and the end of the ctx of the first waiter, meet at every point: the
// second waiter must get the lock, whether the first had been granted it, had been
// woken for it, or had not noticed yet.
func TestCanceledWaiterHandsOn(t *testing.T) {
	const steps = 400
	for _, holder := range []string{"a goroutine", "another process"} {
		eachWay(t, func(t *testing.T, o flockctx.Options) {
			t.Run(holder+" holds", func(t *testing.T) {
				clean(t)
				path := filepath.Join(t.TempDir(), "lock")
				l := flockctx.New(path, &o)
				lock, unlock := func() error { return l.Lock(t.Context()) }, l.Unlock
				n := steps
				if holder == "another process" {
					n = steps / 4
					p := newPeer(t)
					defer p.kill()
					lock = func() error { p.must("ok", order{Do: "lock", Path: path, Opts: o}); return nil }
					unlock = func() error { p.must("ok", order{Do: "close"}); return nil }
				}
				granted := 0
				for i := range n {
					if err := lock(); err != nil {
						t.Fatal(err)
					}
					ctx, cancel := context.WithCancel(t.Context())
					first, second := make(chan error, 1), make(chan error, 1)
					take := func(ctx context.Context, result chan error) {
						l, err := flockctx.Lock(ctx, path, &o)
						if err == nil {
							err = l.Close()
						}
						result <- err
					}
					go take(ctx, first)
					pause(50 * time.Microsecond)
					go take(within(t, 20*time.Second), second)
					// Past the first millisecond the queue is fair, before that
					// it wakes the first to compete.
					pause(time.Duration(i%7) * 250 * time.Microsecond)
					go func() {
						pause(time.Duration(i%40) * time.Microsecond)
						cancel()
					}()
					pause(20 * time.Microsecond)
					if err := unlock(); err != nil {
						t.Fatal(err)
					}
					if err := <-second; err != nil {
						t.Fatalf("step %d: the second waiter, after the first was canceled: %v", i, err)
					}
					switch err := <-first; outcome(err) {
					case "ok":
						granted++
					case "ended":
					default:
						t.Fatalf("step %d: the first waiter: %v", i, err)
					}
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				mustTry(t, "ok", path, o)
				t.Logf("FIGURE cancel meets release, %v %v, %s holds: %d times, the first waiter granted %d times", o.Mechanism, o.Wait, holder, n, granted)
			})
		})
	}
}

// Goroutines that share an open file hold one lock of the kernel together, while
// another process takes it exclusively in between: whoever is granted it while
// another goroutine gives it back must have it.
func TestSharedOpenFile(t *testing.T) {
	for _, m := range mechanisms {
		p := plan{Seed: *seedFlag, Files: 1, Procs: 2, Goroutines: 6, Millis: 1500, SharedPct: 75, Borrow: true,
			Mechanisms: []flockctx.Mechanism{m}, Waits: []flockctx.Wait{flockctx.WaitBlock}, Hold: 20 * time.Microsecond}
		sum := tally{Rounds: 1}
		if bad := runRound(t, p, &sum, ""); len(bad) > 0 {
			t.Errorf("%v: %s", m, strings.Join(bad[:min(len(bad), 8)], "\n"))
		}
		t.Log(sum.String())
	}
}
