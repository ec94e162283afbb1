//go:build unix

package etcdtest_test

import (
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/flockctx/flockctx/locker/etcd"
	"github.com/flockctx/flockctx/locker/etcd/etcdtest"
)

// A way to lock takes one lock and returns how to release it.
type way func() (unlock func())

func flockctxWay(b *testing.B, c *etcdtest.Cluster) way {
	l := etcd.New(c.Client(b), nil)
	return func() func() {
		h := lock(b, l, "bench")
		return func() {
			if err := h.Unlock(ctx(b)); err != nil {
				b.Error(err)
			}
		}
	}
}

// stockWay is the stock Mutex: with a session of its own, as it must be to exclude every
// other user of it, or with one session for all.
func stockWay(b *testing.B, c *etcdtest.Cluster, shared bool) way {
	client := c.Client(b)
	var one *concurrency.Session
	return func() func() {
		s := one
		if s == nil {
			var err error
			if s, err = concurrency.NewSession(client); err != nil {
				b.Fatal(err)
			}
			if shared {
				one = s
			}
		}
		m := concurrency.NewMutex(s, "stock")
		if err := m.Lock(ctx(b)); err != nil {
			b.Fatal(err)
		}
		return func() {
			if err := m.Unlock(ctx(b)); err != nil {
				b.Error(err)
			}
			if !shared {
				go s.Close()
			}
		}
	}
}

func median(all []time.Duration) float64 {
	slices.Sort(all)
	return float64(all[len(all)/2]) / float64(time.Millisecond)
}

var clusters = []struct {
	name    string
	servers int
}{{"one server", 1}, {"three servers", 3}}

// BenchmarkLockUnlock takes a free lock in turn by flockctx, the stock Mutex with a session
// each, and the stock Mutex with one session for all. It reports medians.
func BenchmarkLockUnlock(b *testing.B) {
	for _, cluster := range clusters {
		b.Run(cluster.name, func(b *testing.B) {
			c := etcdtest.StartSynced(b, cluster.servers)
			ways := []way{flockctxWay(b, c), stockWay(b, c, false), stockWay(b, c, true)}
			times := make([][]time.Duration, len(ways))
			for b.Loop() {
				for i, lock := range ways {
					begin := time.Now()
					lock()()
					times[i] = append(times[i], time.Since(begin))
				}
			}
			b.ReportMetric(median(times[0]), "flockctx-ms")
			b.ReportMetric(median(times[1]), "stock-ms")
			b.ReportMetric(median(times[2]), "stock-one-session-ms")
			b.ReportMetric(median(times[0])/median(times[1]), "flockctx/stock")
		})
	}
}

// BenchmarkHandOver measures from the call of one client's unlock to the return of the
// lock of another one that has waited, in turn by flockctx and by the stock Mutex.
func BenchmarkHandOver(b *testing.B) {
	for _, cluster := range clusters {
		for _, pause := range []time.Duration{20 * time.Millisecond, 200 * time.Millisecond} {
			b.Run(cluster.name+" after "+pause.String(), func(b *testing.B) {
				c := etcdtest.StartSynced(b, cluster.servers)
				ways := [][2]way{
					{flockctxWay(b, c), flockctxWay(b, c)},
					{stockWay(b, c, true), stockWay(b, c, true)},
				}
				times := make([][]time.Duration, len(ways))
				for b.Loop() {
					for i, w := range ways {
						times[i] = append(times[i], handOver(w, pause))
					}
				}
				b.ReportMetric(median(times[0]), "flockctx-ms")
				b.ReportMetric(median(times[1]), "stock-ms")
				b.ReportMetric(median(times[0])/median(times[1]), "flockctx/stock")
			})
		}
	}
}

func handOver(w [2]way, pause time.Duration) time.Duration {
	unlock := w[0]()
	granted := make(chan time.Time)
	var last func()
	go func() {
		last = w[1]()
		granted <- time.Now()
	}()
	time.Sleep(pause)
	begin := time.Now()
	unlock()
	took := (<-granted).Sub(begin)
	last()
	return took
}
