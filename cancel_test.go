package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"go.uber.org/goleak"
)

// A trap: a timed-out Lock leaves a goroutine, which later takes the lock, or
// closes a descriptor that was reused.
func TestNothingRemainsOfACancelledLock(t *testing.T) {
	for _, mechanism := range mechanisms() {
		for _, wait := range waits {
			for _, foreign := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v,%v,foreign=%v", mechanism, wait, foreign), func(t *testing.T) {
					path := tempPath(t)
					o := flockctx.Options{Mechanism: mechanism, Wait: wait}
					other := startAgent(t, path, o)
					var own *flockctx.Flock
					if foreign {
						other.must("lock")
					} else {
						own = mustLock(t, path, &o)
					}
					ignore := goleak.IgnoreCurrent()
					descriptors, queues := countDescriptors(), flockctx.Queues()
					var all []<-chan error
					ctx, cancel := context.WithCancel(t.Context())
					const waiters = 10
					for i := range waiters {
						o := o
						o.Mode = flockctx.Mode(i % 2)
						all = append(all, async(func() error { _, err := flockctx.Lock(ctx, path, &o); return err }))
					}
					eventually(t, "all wait", func() bool {
						return flockctx.WaitingOutside()+flockctx.Waiters(path, mechanism) == waiters
					})
					cancel()
					for _, ch := range all {
						wantErr(t, soon(t, ch, "Lock after cancel"), context.Canceled)
					}
					if n := flockctx.WaitingOutside(); n != 0 {
						t.Errorf("%d still wait", n)
					}
					if n := countDescriptors(); n > descriptors {
						t.Errorf("%d descriptors before, %d after", descriptors, n)
					}
					if n := flockctx.Queues(); n > queues {
						t.Errorf("%d queues before, %d after", queues, n)
					}
					if err := goleak.Find(ignore); err != nil {
						t.Error(err)
					}
					if foreign {
						other.must("unlock")
					} else {
						must(t, own.Unlock())
					}
					wantFree(t, path, o)
					other.must("trylock")
				})
			}
		}
	}
}

// The end of a context ends a wait in the kernel, and a poll whose next try is far
// away, and does not wait for that try: some 50 µs. A try each 100 ms would show.
func TestCancellationIsSoon(t *testing.T) {
	for _, wait := range waits {
		path := tempPath(t)
		startHolder(t, path, flockctx.Options{})
		var took []time.Duration
		for range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			o := &flockctx.Options{Wait: wait, Poll: flockctx.Backoff{Min: 100 * time.Millisecond}}
			done := async(func() error { _, err := flockctx.Lock(ctx, path, o); return err })
			eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
			start := time.Now()
			cancel()
			wantErr(t, soon(t, done, "Lock after cancel"), context.Canceled)
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		if median := took[len(took)/2]; median > 20*time.Millisecond {
			t.Errorf("%v: half of the cancels were noticed after %v and more", wait, median)
		}
	}
}

// A grant that races the end of the context is kept or handed on, never lost.
func TestGrantRacesCancellation(t *testing.T) {
	for _, mechanism := range mechanisms() {
		for _, wait := range waits {
			for _, foreign := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v,%v,foreign=%v", mechanism, wait, foreign), func(t *testing.T) {
					path := tempPath(t)
					o := flockctx.Options{Mechanism: mechanism, Wait: wait, Poll: flockctx.Backoff{Max: time.Millisecond}}
					other := startAgent(t, path, o)
					own := newHandle(t, path, &o)
					granted, cancelled := 0, 0
					for range 150 {
						if foreign {
							other.must("lock")
						} else {
							must(t, own.Lock(t.Context()))
						}
						ctx, cancel := context.WithCancel(t.Context())
						var l *flockctx.Flock
						first := async(func() (err error) { l, err = flockctx.Lock(ctx, path, &o); return err })
						eventually(t, "one waits", func() bool {
							return flockctx.WaitingOutside()+flockctx.Waiters(path, mechanism) == 1
						})
						// The second gets what the first is too late for.
						var l2 *flockctx.Flock
						second := async(func() (err error) { l2, err = flockctx.Lock(t.Context(), path, &o); return err })
						eventually(t, "two wait", func() bool {
							return flockctx.WaitingOutside()+flockctx.Waiters(path, mechanism) == 2
						})
						spin := func(d int) {
							for end := time.Now().Add(time.Duration(d) * time.Microsecond); time.Now().Before(end); {
								runtime.Gosched()
							}
						}
						var wg sync.WaitGroup
						pause := rand.IntN(100)
						wg.Go(func() {
							spin(pause)
							cancel()
						})
						if spin(rand.IntN(100)); foreign {
							other.must("unlock")
						} else {
							must(t, own.Unlock())
						}
						switch err := soon(t, first, "the first Lock"); {
						case err == nil:
							granted++
							wantLocked(t, path, o)
							must(t, l.Close())
						case errors.Is(err, context.Canceled):
							cancelled++
						default:
							t.Fatal(err)
						}
						must(t, soon(t, second, "the second Lock"))
						must(t, l2.Close())
						wg.Wait()
						cancel()
						wantFree(t, path, o)
					}
					t.Logf("%d granted, %d cancelled", granted, cancelled)
				})
			}
		}
	}
}

// A context that ends while the grant arrives loses, and the grant is handed on: here
// nothing tells the wait that its context has ended, so the grant always comes first.
func TestGrantAfterTheEndOfTheContextLoses(t *testing.T) {
	for _, mechanism := range mechanisms() {
		for _, wait := range waits {
			for _, foreign := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v,%v,foreign=%v", mechanism, wait, foreign), func(t *testing.T) {
					path := tempPath(t)
					o := flockctx.Options{Mechanism: mechanism, Wait: wait}
					var release func()
					if foreign {
						other := startHolder(t, path, o)
						release = func() { other.must("unlock") }
					} else {
						own := mustLock(t, path, &o)
						release = func() { must(t, own.Unlock()) }
					}
					ctx := &endsAfter{Context: context.Background()}
					ctx.n.Store(1 << 30)
					first := async(func() error { _, err := flockctx.Lock(ctx, path, &o); return err })
					eventually(t, "one waits", func() bool {
						return flockctx.WaitingOutside()+flockctx.Waiters(path, mechanism) == 1
					})
					l := newHandle(t, path, &o)
					behind := async(func() error { return l.Lock(t.Context()) })
					eventually(t, "two wait", func() bool {
						return flockctx.WaitingOutside()+flockctx.Waiters(path, mechanism) == 2
					})
					ctx.n.Store(0)
					release()
					err := soon(t, first, "the Lock whose context has ended")
					wantErr(t, err, context.Canceled)
					if busy, ok := err.(*flockctx.BusyError); !ok || busy.Waited == 0 {
						t.Errorf("%#v", err)
					}
					must(t, soon(t, behind, "the Lock behind it"))
					must(t, l.Close())
					wantFree(t, path, o)
				})
			}
		}
	}
}

// Deadlines that end anywhere on the way to the lock lose no update.
func TestDeadlinesOnTheWayLoseNoUpdate(t *testing.T) {
	path := tempPath(t)
	var wg sync.WaitGroup
	count, total := 0, 0
	var mu sync.Mutex
	for range 6 {
		wg.Go(func() {
			mine := 0
			for range 300 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(300))*time.Microsecond)
				l, err := flockctx.Lock(ctx, path, nil)
				if err == nil {
					count++
					mine++
					if mine%4 == 0 {
						time.Sleep(50 * time.Microsecond)
					}
					if err := l.Close(); err != nil {
						t.Error(err)
					}
				} else if !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				cancel()
			}
			mu.Lock()
			total += mine
			mu.Unlock()
		})
	}
	wg.Wait()
	if count != total {
		t.Errorf("count %d, want %d", count, total)
	}
	wantFree(t, path, flockctx.Options{})
}

// A context whose Done is nil needs nobody who could end it.
func TestContextWithoutDone(t *testing.T) {
	for _, wait := range waits {
		path := tempPath(t)
		holder := startHolder(t, path, flockctx.Options{})
		before := runtime.NumGoroutine()
		var l *flockctx.Flock
		done := async(func() (err error) {
			l, err = flockctx.Lock(context.Background(), path, &flockctx.Options{Wait: wait})
			return err
		})
		eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
		if n := runtime.NumGoroutine(); n > before+1 {
			t.Errorf("%d goroutines, want the waiting one only", n-before)
		}
		holder.must("unlock")
		must(t, soon(t, done, "Lock"))
		must(t, l.Close())
	}
}

// A waiting Lock needs no helper goroutine, and a context of another make only the
// one that package context starts for it.
func TestWaitingTakesNoGoroutine(t *testing.T) {
	for _, wait := range waits {
		path := tempPath(t)
		startHolder(t, path, flockctx.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		before := runtime.NumGoroutine()
		var all []<-chan error
		for range 20 {
			all = append(all, async(func() error { _, err := flockctx.Lock(ctx, path, &flockctx.Options{Wait: wait}); return err }))
		}
		eventually(t, "all wait", func() bool {
			return flockctx.WaitingOutside()+flockctx.Waiters(path, flockctx.BSD) == 20
		})
		if n := runtime.NumGoroutine(); n > before+20 {
			t.Errorf("%d goroutines, want 20", n-before)
		}
		cancel()
		for _, ch := range all {
			wantErr(t, soon(t, ch, "Lock after cancel"), context.Canceled)
		}
	}
}

type foreignContext struct {
	context.Context
	done chan struct{}
	mu   sync.Mutex
	err  error
}

func (c *foreignContext) Done() <-chan struct{} { return c.done }
func (c *foreignContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *foreignContext) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	close(c.done)
}

func TestContextOfAnotherMake(t *testing.T) {
	own := errors.New("own")
	for _, wait := range waits {
		for _, foreign := range []bool{false, true} {
			path := tempPath(t)
			if foreign {
				startHolder(t, path, flockctx.Options{})
			} else {
				mustLock(t, path, nil)
			}
			ctx := &foreignContext{Context: context.Background(), done: make(chan struct{})}
			done := async(func() error { _, err := flockctx.Lock(ctx, path, &flockctx.Options{Wait: wait}); return err })
			eventually(t, "it waits", func() bool {
				return flockctx.WaitingOutside()+flockctx.Waiters(path, flockctx.BSD) == 1
			})
			ctx.end(own)
			wantErr(t, soon(t, done, "Lock after its end"), own)
		}
	}
}

// endsAfter ends when its Err has been asked for n times.
type endsAfter struct {
	context.Context
	n atomic.Int32
}

func (c *endsAfter) Err() error {
	if c.n.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// A context that ends while an uncontended Lock is on its way loses nevertheless.
func TestContextThatEndsOnTheWayToAFreeLock(t *testing.T) {
	for _, again := range []bool{false, true} {
		path := tempPath(t)
		l := newHandle(t, path, &flockctx.Options{Flag: os.O_RDWR | os.O_CREATE | os.O_TRUNC})
		if again {
			must(t, l.Lock(t.Context()))
			must(t, l.Unlock())
		}
		must(t, os.WriteFile(path, []byte("content"), 0o600))
		ctx := &endsAfter{Context: context.Background()}
		ctx.n.Store(1)
		err := l.Lock(ctx)
		wantErr(t, err, context.Canceled)
		if _, ok := err.(*flockctx.BusyError); !ok || l.Locked() {
			t.Errorf("%#v, locked %v", err, l.Locked())
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "content" {
			t.Errorf("%q, %v", b, err)
		}
		wantFree(t, path, flockctx.Options{})
	}
}

// A trap: a try-lock that blocks behind a goroutine of its own process.
func TestTryLockNeverBlocks(t *testing.T) {
	path := tempPath(t)
	holder := startHolder(t, path, flockctx.Options{})
	shared := &flockctx.Options{Mode: flockctx.Shared}
	var waiting []<-chan error
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := newHandle(t, path, nil)
	waiting = append(waiting, async(func() error { return l.Lock(ctx) })) // in the kernel
	eventually(t, "one waits in the kernel", func() bool { return flockctx.WaitingOutside() == 1 })
	for range 3 {
		waiting = append(waiting, async(func() error { _, err := flockctx.Lock(ctx, path, shared); return err }))
		waiting = append(waiting, async(func() error { _, err := flockctx.Lock(ctx, path, nil); return err }))
		waiting = append(waiting, async(func() error { return l.Lock(ctx) }))
	}
	eventually(t, "all wait", func() bool {
		return flockctx.Waiters(path, flockctx.BSD) == 6 && flockctx.HandleWaiters(l) == 3
	})
	other := newHandle(t, path, nil)
	for name, try := range map[string]func() error{
		"the handle that waits": l.TryLock,
		"another handle":        other.TryLock,
		"a new handle":          func() error { _, err := flockctx.TryLock(path, nil); return err },
		"a new shared handle":   func() error { _, err := flockctx.TryLock(path, shared); return err },
	} {
		wantErr(t, soon(t, async(try), "TryLock of "+name), flockctx.ErrLocked)
	}
	cancel()
	for _, ch := range waiting {
		wantErr(t, soon(t, ch, "Lock after cancel"), context.Canceled)
	}
	holder.must("unlock")
	must(t, other.TryLock())
}

// goroutinesIn returns how many goroutines are inside the function of that name.
func goroutinesIn(name string) (n int) {
	b := make([]byte, 1<<20)
	for g := range strings.SplitSeq(string(b[:runtime.Stack(b, true)]), "\n\n") {
		if strings.Contains(g, name) {
			n++
		}
	}
	return n
}

// Where other goroutines hang in open(2), as on a dead network mount, a TryLock of
// another file does not wait for them, and a Lock no longer than its context.
func TestOpensThatHang(t *testing.T) {
	path := tempPath(t)
	done := flockctx.PretendOpening(false)
	l := newHandle(t, path, nil)
	must(t, soon(t, async(l.TryLock), "TryLock"))
	done()
	done = flockctx.PretendOpening(true) // for as long as it takes
	var waiting []<-chan error
	ctx, cancel := context.WithCancel(t.Context())
	for range 3 {
		waiting = append(waiting, async(func() error { _, err := flockctx.Lock(ctx, path+"2", nil); return err }))
	}
	queued := func(n int) func() bool {
		return func() bool { return goroutinesIn(".awaitOpening(") == n }
	}
	eventually(t, "three wait for a place", queued(3))
	cancel()
	for _, ch := range waiting {
		wantErr(t, soon(t, ch, "Lock after cancel"), context.Canceled)
	}
	other := newHandle(t, path+"3", nil)
	closed := async(func() error { return other.Lock(context.Background()) })
	late := newHandle(t, path+"4", nil)
	granted := async(func() error { return late.Lock(context.Background()) })
	eventually(t, "two wait for a place", queued(2))
	must(t, other.Close())
	wantErr(t, soon(t, closed, "Lock after Close"), fs.ErrClosed)
	done()
	must(t, soon(t, granted, "Lock when there is a place"))
}

// A trap: a permanent refusal is not a timeout.
func TestRefusalIsNoTimeout(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	start := time.Now()
	_, err := flockctx.Lock(ctx, filepath.Join(t.TempDir(), "missing", "x"), &flockctx.Options{Wait: flockctx.WaitPoll})
	if busy, ok := errors.AsType[*flockctx.BusyError](err); ok || err == nil || time.Since(start) > 30*time.Second {
		t.Errorf("%v after %v (%#v)", err, time.Since(start), busy)
	}
}

// Locks of different handles wait for each other whatever their ways of waiting.
func TestWaysOfWaitingMix(t *testing.T) {
	path := tempPath(t)
	count := 0
	var wg sync.WaitGroup
	for i := range 9 {
		wg.Go(func() {
			o := &flockctx.Options{Wait: waits[i%len(waits)]}
			for range 50 {
				must(t, flockctx.Do(t.Context(), path, o, func(*flockctx.Flock) error { count++; return nil }))
			}
		})
	}
	wg.Wait()
	if count != 450 {
		t.Errorf("count %d", count)
	}
}
