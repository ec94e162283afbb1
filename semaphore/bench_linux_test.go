package semaphore_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/semaphore"
)

// BenchmarkUncontended shows what a slot costs beside a lock: taken and given back.
func BenchmarkUncontended(b *testing.B) {
	ctx := context.Background()
	b.Run("lock", func(b *testing.B) {
		path := tempPath(b)
		for b.Loop() {
			l, err := flockctx.Lock(ctx, path, nil)
			must(b, err)
			l.Close()
		}
	})
	for _, n := range []int{1, 4, 1000} {
		b.Run(fmt.Sprintf("slots=%d", n), func(b *testing.B) {
			path := tempPath(b)
			for b.Loop() {
				p, err := semaphore.Acquire(ctx, path, n, nil)
				must(b, err)
				p.Release()
			}
		})
	}
	for _, n := range []int{4, 100, 1000} {
		b.Run(fmt.Sprintf("slots=%d,full,try", n), func(b *testing.B) {
			path := tempPath(b)
			for range n {
				p, err := semaphore.Acquire(ctx, path, n, nil)
				must(b, err)
				defer p.Release()
			}
			for b.Loop() {
				if _, err := semaphore.TryAcquire(path, n, nil); err == nil {
					b.Fatal("got a slot")
				}
			}
		})
	}
}

// BenchmarkHandover has another process wait, and gives it the lock or the slot after a
// moment: how long from before the release to the return of the other's Acquire, by the
// machine's monotonic clock. The two take turns.
func BenchmarkHandover(b *testing.B) {
	ways := []string{"lock", "slot"}
	took := make([][]time.Duration, len(ways))
	agents := make([]*handover, len(ways))
	for i, way := range ways {
		agents[i] = startHandover(b, way)
	}
	for b.Loop() {
		for i, a := range agents {
			took[i] = append(took[i], a.once(b))
		}
	}
	var medians []float64
	for i, way := range ways {
		slices.Sort(took[i])
		m := float64(took[i][len(took[i])/2].Nanoseconds()) / 1000
		medians = append(medians, m)
		b.ReportMetric(m, way+"-µs")
		b.ReportMetric(float64(took[i][len(took[i])/10].Nanoseconds())/1000, way+"-p10-µs")
	}
	b.ReportMetric(medians[1]/medians[0], "slot/lock")
	b.ReportMetric(0, "ns/op")
}

// A handover is another process that waits when it is told to.
type handover struct {
	*agent
	way, path string
	granted   *atomic.Int64 // in a file that both have mapped
}

func startHandover(b *testing.B, way string) *handover {
	h := &handover{way: way, path: tempPath(b)}
	shared := filepath.Join(b.TempDir(), "shared")
	must(b, os.WriteFile(shared, make([]byte, 4096), 0o600))
	h.granted = (*atomic.Int64)(unsafe.Pointer(&mapFile(b, shared)[0]))
	h.agent = startCommand(b, "handover", way, h.path, shared)
	return h
}

// take takes the lock or the slot.
func take(way, path string) (release func() error) {
	if way == "lock" {
		l, err := flockctx.Lock(context.Background(), path, nil)
		if err != nil {
			panic(err)
		}
		return l.Close
	}
	p, err := semaphore.Acquire(context.Background(), path, 1, nil)
	if err != nil {
		panic(err)
	}
	return p.Release
}

func (h *handover) once(b *testing.B) time.Duration {
	release := take(h.way, h.path)
	h.send("go")
	time.Sleep(3 * time.Millisecond) // it waits by then
	released := monotonic()
	release()
	if h.answer() != "done" {
		b.Fatal("the other process did not get it")
	}
	return time.Duration(h.granted.Load() - released)
}

var _ = register("handover", func(args []string) error {
	granted := (*atomic.Int64)(unsafe.Pointer(&mapFile(nil, args[2])[0]))
	var order string
	for {
		if _, err := fmt.Scanln(&order); err != nil {
			return nil
		}
		release := take(args[0], args[1])
		granted.Store(monotonic())
		release()
		fmt.Println("done")
	}
})
