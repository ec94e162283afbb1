//go:build linux

package flockctx_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// Each benchmark has the bare system calls beside it. The peers are in bench/.

// A benchLock is a lock on a file that is kept open.
type benchLock interface {
	Lock(context.Context) error
	Unlock() error
	Close() error
}

// A bareLock is flock(2) and nothing else; with stat also the check of the path that
// a lock by path needs.
type bareLock struct {
	fd   int
	path string
	stat bool
	st   unix.Stat_t
}

func openBare(path string) (*bareLock, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	return &bareLock{fd: fd, path: path}, err
}

func (l *bareLock) Lock(context.Context) error {
	for {
		err := unix.Flock(l.fd, unix.LOCK_EX)
		if err == unix.EINTR {
			continue
		}
		if err == nil && l.stat {
			err = unix.Stat(l.path, &l.st)
		}
		return err
	}
}
func (l *bareLock) Unlock() error { return unix.Flock(l.fd, unix.LOCK_UN) }
func (l *bareLock) Close() error  { return unix.Close(l.fd) }

// openBench returns the lock of that name on path.
func openBench(name, path string) (benchLock, error) {
	switch name {
	case "flockctx":
		return flockctx.New(path, nil), nil
	case "poll":
		return flockctx.New(path, &flockctx.Options{Wait: flockctx.WaitPoll}), nil
	case "bare":
		return openBare(path)
	case "bare+stat":
		l, err := openBare(path)
		l.stat = true
		return l, err
	}
	return nil, fmt.Errorf("no lock named %q", name)
}

func mustOpenBench(b *testing.B, name, path string) benchLock {
	l, err := openBench(name, path)
	must(b, err)
	b.Cleanup(func() { l.Close() })
	return l
}

// benchContext returns a context that can end, as a program's can.
func benchContext(b *testing.B) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	b.Cleanup(cancel)
	return ctx
}

func BenchmarkByPath(b *testing.B) {
	ctx := benchContext(b)
	b.Run("flockctx", func(b *testing.B) {
		path := tempPath(b)
		b.ReportAllocs()
		for b.Loop() {
			l, err := flockctx.Lock(ctx, path, nil)
			if err != nil {
				b.Fatal(err)
			}
			if err := l.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		path := tempPath(b)
		b.ReportAllocs()
		for b.Loop() {
			l, err := openBare(path)
			if err == nil {
				err = l.Lock(ctx)
			}
			if err == nil {
				err = l.Close()
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkKept(b *testing.B) {
	for _, name := range []string{"flockctx", "bare+stat", "bare"} {
		b.Run(name, func(b *testing.B) {
			ctx := benchContext(b)
			l := mustOpenBench(b, name, tempPath(b))
			b.ReportAllocs()
			for b.Loop() {
				if err := l.Lock(ctx); err != nil {
					b.Fatal(err)
				}
				if err := l.Unlock(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkContended has goroutines that each have a handle take turns. The bare ones
// take a thread each, which TestMain counts.
func BenchmarkContended(b *testing.B) {
	for _, goroutines := range []int{16, 64} {
		for _, name := range []string{"flockctx", "bare"} {
			b.Run(fmt.Sprintf("%s-%d", name, goroutines), func(b *testing.B) {
				ctx := benchContext(b)
				path := tempPath(b)
				locks := make([]benchLock, goroutines)
				for i := range locks {
					locks[i] = mustOpenBench(b, name, path)
				}
				var next, left, longest atomic.Int64
				left.Store(int64(b.N))
				done := make(chan error)
				b.ResetTimer()
				for range goroutines {
					go func() {
						l := locks[next.Add(1)-1]
						for left.Add(-1) >= 0 {
							start := time.Now()
							if err := l.Lock(ctx); err != nil {
								done <- err
								return
							}
							// Whoever holds the lock is the only one here.
							longest.Store(max(longest.Load(), int64(time.Since(start))))
							if err := l.Unlock(); err != nil {
								done <- err
								return
							}
						}
						done <- nil
					}()
				}
				for range goroutines {
					if err := <-done; err != nil {
						b.Error(err)
					}
				}
				b.ReportMetric(float64(longest.Load())/1e6, "longest-ms")
			})
		}
	}
}

// monotonic reads the clock that all processes share.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

// The other side of BenchmarkHandOver: locks, and says when it began to unlock.
var _ = registerCommand("hand over", func(args []string) error {
	l, err := openBench(args[0], args[1])
	if err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		t := int64(0)
		if in.Text() == "lock" {
			err = l.Lock(context.Background())
		} else {
			t = monotonic()
			err = l.Unlock()
		}
		if err != nil {
			return err
		}
		fmt.Println(t)
	}
	return nil
})

// BenchmarkHandOver measures from the unlock of another process to the grant here.
func BenchmarkHandOver(b *testing.B) {
	for _, name := range []string{"flockctx", "poll", "bare"} {
		b.Run(name, func(b *testing.B) {
			ctx := benchContext(b)
			path := tempPath(b)
			cmd := newCommand(b, "hand over", []string{name, path})
			stdin, err := cmd.StdinPipe()
			must(b, err)
			stdout, err := cmd.StdoutPipe()
			must(b, err)
			must(b, cmd.Start())
			defer cmd.Wait()
			defer stdin.Close()
			out := bufio.NewReader(stdout)
			order := func(s string) int64 {
				io.WriteString(stdin, s+"\n")
				line, err := out.ReadString('\n')
				if err != nil {
					b.Fatal(err)
				}
				t, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
				must(b, err)
				return t
			}
			l := mustOpenBench(b, name, path)
			granted := make(chan int64)
			var took []int64
			for b.Loop() {
				order("lock")
				go func() {
					if err := l.Lock(ctx); err != nil {
						b.Error(err)
					}
					granted <- monotonic()
				}()
				time.Sleep(500 * time.Microsecond) // until it waits; a longer wait changes nothing
				released := order("unlock")
				took = append(took, <-granted-released)
				must(b, l.Unlock())
			}
			reportQuantiles(b, took)
		})
	}
}

// BenchmarkCancel measures from the end of a context to the return of Lock. The bare
// system call cannot be cancelled; beside it is a goroutine that waits for nothing but
// the context.
func BenchmarkCancel(b *testing.B) {
	run := func(name string, wait func(context.Context) error) {
		b.Run(name, func(b *testing.B) {
			back := make(chan int64)
			var took []int64
			for b.Loop() {
				ctx, cancel := context.WithCancel(context.Background())
				go func() {
					if err := wait(ctx); !errors.Is(err, context.Canceled) {
						b.Errorf("not cancelled: %v", err)
					}
					back <- monotonic()
				}()
				time.Sleep(500 * time.Microsecond) // until it waits, mostly
				start := monotonic()
				cancel()
				took = append(took, <-back-start)
			}
			reportQuantiles(b, took)
		})
	}
	path := tempPath(b)
	startHolder(b, path, flockctx.Options{})
	run("kernel", mustOpenBench(b, "flockctx", path).Lock)
	run("poll", mustOpenBench(b, "poll", path).Lock)
	here := tempPath(b)
	mustLock(b, here, nil)
	run("parked", mustOpenBench(b, "flockctx", here).Lock)
	run("context alone", func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
}

// reportQuantiles reports what each operation took; the time of the whole loop means
// nothing. p99 is there only where ten samples are beyond it.
func reportQuantiles(b *testing.B, took []int64) {
	slices.Sort(took)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took[len(took)/2]), "p50-ns")
	if n := len(took); n >= 1000 {
		b.ReportMetric(float64(took[(n*99+99)/100-1]), "p99-ns") // rank: 0.99 n, rounded up
	}
	b.ReportMetric(float64(took[len(took)-1]), "max-ns")
}

// BenchmarkTracer compares locks that are told to nobody, and to a tracer that counts.
// The two take turns, in batches of a few milliseconds, so that what else the machine
// does meets both.
func BenchmarkTracer(b *testing.B) {
	var counted [5]atomic.Int64
	count := func(i int) func(context.Context, flockctx.Event) {
		return func(context.Context, flockctx.Event) { counted[i].Add(1) }
	}
	tracer := &flockctx.Tracer{
		Waiting: func(ctx context.Context, _ flockctx.Event) context.Context {
			counted[0].Add(1)
			return ctx
		},
		StillWaiting: count(1), Acquired: count(2), Failed: count(3),
		Released: func(flockctx.Event) { counted[4].Add(1) },
	}
	ctx := benchContext(b)
	path := tempPath(b)
	kept := mustOpenBench(b, "flockctx", tempPath(b))
	for name, once := range map[string]func() error{
		"kept": func() error {
			if err := kept.Lock(ctx); err != nil {
				return err
			}
			return kept.Unlock()
		},
		"by path": func() error {
			l, err := flockctx.Lock(ctx, path, nil)
			if err != nil {
				return err
			}
			return l.Close()
		},
	} {
		b.Run(name, func(b *testing.B) {
			const batch = 1000
			var took [2][]float64 // ns of one, by batch: off, on
			defer flockctx.SetTracer(nil)
			for b.Loop() {
				for on, t := range []*flockctx.Tracer{nil, tracer} {
					flockctx.SetTracer(t)
					start := time.Now()
					for range batch {
						if err := once(); err != nil {
							b.Fatal(err)
						}
					}
					took[on] = append(took[on], float64(time.Since(start).Nanoseconds())/batch)
				}
			}
			var ratios []float64
			for i := range took[0] {
				ratios = append(ratios, took[1][i]/took[0][i])
			}
			for _, s := range [][]float64{took[0], took[1], ratios} {
				slices.Sort(s)
			}
			middle := len(ratios) / 2
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(took[0][middle], "off-ns")
			b.ReportMetric(took[1][middle], "on-ns")
			b.ReportMetric(ratios[middle], "on/off")
		})
	}
}
