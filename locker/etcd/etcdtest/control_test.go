//go:build unix

package etcdtest_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/flockctx/flockctx/locker/etcd/etcdtest"
	"github.com/flockctx/flockctx/locker/lockertest"
)

// TestControl partitions the stock client's session and Mutex: it has two holders at
// times, which shows that the same injection against this package would find them.
func TestControl(t *testing.T) {
	t.Parallel()
	n := size(12, 60)
	c := etcdtest.Start(t, 1)
	var mu sync.Mutex
	var all []lockertest.Overlap
	var wg sync.WaitGroup
	slots := make(chan bool, 10)
	for i := range n {
		wg.Go(func() {
			slots <- true
			defer func() { <-slots }()
			p := lockertest.NewProxy(t, "tcp", c.Servers[0].Addr())
			client := c.Client(t, p.Addr())
			direct := c.Client(t)
			name := fmt.Sprintf("control%d/", i)
			o := lockertest.Partition(t, func() {
				p.Swallow([]lockertest.Direction{lockertest.Both, lockertest.ToServer, lockertest.ToClient}[i%3])
			}, func() <-chan struct{} {
				// The client looks for lapsed leases every second from its
				// first one on: as a client that has been running for long.
				if _, err := concurrency.NewSession(client); err != nil {
					t.Error(err)
				}
				time.Sleep(rand.N(time.Second))
				s, err := concurrency.NewSession(client, concurrency.WithTTL(2))
				if err != nil {
					t.Fatal(err)
				}
				if err := concurrency.NewMutex(s, name).Lock(ctx(t)); err != nil {
					t.Fatal(err)
				}
				return s.Done()
			}, func() {
				s, err := concurrency.NewSession(direct, concurrency.WithTTL(2))
				if err == nil {
					err = concurrency.NewMutex(s, name).Lock(ctx(t))
				}
				if err != nil {
					t.Error(err)
				}
			})
			mu.Lock()
			all = append(all, o)
			mu.Unlock()
		})
	}
	wg.Wait()
	if lockertest.Report(t, "stock client", all) == 0 {
		t.Error("the control has no overlaps: the injection finds nothing")
	}
}
