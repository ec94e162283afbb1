//go:build unix

package etcdtest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/etcd"
	"github.com/flockctx/flockctx/locker/etcd/etcdtest"
)

// TestWaiterLosesItsPlace: a queued waiter whose lease has died must not wait for ever.
func TestWaiterLosesItsPlace(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	client := c.Client(t)
	l := open(client)
	h := lock(t, l, "place")
	for _, how := range []string{"revoke", "delete"} {
		errs := make(chan error)
		go func() { _, err := l.Lock(ctx(t), "place", locker.Exclusive); errs <- err }()
		all, leases := waitFor(t, client, "place", 2)
		var err error
		if how == "revoke" {
			_, err = client.Revoke(ctx(t), leases[1])
		} else {
			_, err = client.Delete(ctx(t), all[1])
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := <-errs; !errors.Is(err, locker.ErrLost) {
			t.Errorf("%s: %v", how, err)
		}
	}
	if err := h.Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
}

// TestStockMutex: a Mutex of the stock client on the same keys takes part in the queue.
func TestStockMutex(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	client := c.Client(t)
	l := open(client)
	session, err := concurrency.NewSession(client)
	if err != nil {
		t.Fatal(err)
	}
	m := concurrency.NewMutex(session, "flockctx/stock")
	h := lock(t, l, "stock")
	if err := m.TryLock(ctx(t)); err != concurrency.ErrLocked {
		t.Errorf("Mutex.TryLock of a held lock: %v", err)
	}
	locked := make(chan error)
	go func() { locked <- m.Lock(ctx(t)) }()
	waitFor(t, client, "stock", 2)
	if err := h.Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
	if err := <-locked; err != nil {
		t.Fatal(err)
	}
	if h, err := l.TryLock(ctx(t), "stock", locker.Exclusive); err == nil {
		t.Errorf("TryLock of a Mutex's lock: %v", h)
	}
	if err := m.Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
	if err := lock(t, l, "stock").Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
}

// TestTryLockLooksFirst: one that finds somebody there leaves no trace of itself.
func TestTryLockLooksFirst(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	h := lock(t, open(c.Client(t)), "try")
	calls := map[string]int{}
	l := open(tapped(t, c, func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		calls[method[strings.LastIndex(method, "/")+1:]]++
		return next(ctx, method, req, reply, cc, opts...)
	}, nil))
	for range 5 {
		if _, err := l.TryLock(ctx(t), "try", locker.Exclusive); !errors.Is(err, flockctx.ErrLocked) {
			t.Errorf("TryLock of a held lock: %v", err)
		}
	}
	if fmt.Sprint(calls) != "map[Range:5]" {
		t.Errorf("5 of them made the requests %v", calls)
	}
	if err := h.Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
}

func holders(t testing.TB, l locker.Locker, name string) []locker.Holder {
	t.Helper()
	all, err := l.(locker.Inspector).Holders(ctx(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestHolders: who holds, since when, who waits, with a note.
func TestHolders(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	client := c.Client(t)
	l := open(client)
	if all := holders(t, l, "a/b"); len(all) > 0 {
		t.Errorf("of a free lock: %+v", all)
	}
	begin := time.Now()
	h, err := l.Lock(locker.WithNote(ctx(t), "deploy 17"), "a/b", locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan locker.Held)
	go func() {
		h, err := l.Lock(locker.WithNote(ctx(t), `the "next"`), "a/b", locker.Exclusive)
		if err != nil {
			t.Error(err)
		}
		next <- h
	}()
	waitFor(t, client, "a/b", 2)
	session, err := concurrency.NewSession(client)
	if err != nil {
		t.Fatal(err)
	}
	stock, cancel := context.WithCancel(ctx(t))
	stockErr := make(chan error)
	go func() { stockErr <- concurrency.NewMutex(session, "flockctx/a%2Fb").Lock(stock) }()
	waitFor(t, client, "a/b", 3)

	all := holders(t, l, "a/b")
	host, _ := os.Hostname()
	token, _ := h.Token()
	for i, want := range []locker.Holder{
		{Host: host, PID: os.Getpid(), Note: "deploy 17", Token: token},
		{Host: host, PID: os.Getpid(), Note: `the "next"`, Waiting: true},
		{Waiting: true},
	} {
		got := all[i]
		if since := got.Since; i < 2 && (since.Before(begin.Add(-time.Second)) || since.After(time.Now())) {
			t.Errorf("%d: since %v", i, since)
		}
		got.Since = time.Time{}
		if got != want {
			t.Errorf("%d: %+v, not %+v", i, got, want)
		}
	}
	cancel()
	<-stockErr

	granted := time.Now()
	if err := h.Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
	h = <-next
	for {
		all := holders(t, l, "a/b")
		if len(all) != 1 || all[0].Waiting || all[0].Note != `the "next"` {
			t.Fatalf("%+v", all)
		}
		if all[0].Since.After(granted.Add(-time.Millisecond)) { // it notes the grant
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := h.Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
	if _, err := l.(locker.Inspector).Holders(ctx(t), ""); err == nil {
		t.Error("of an empty name")
	}
}

// TestOwner: the guard is true while the lock is held on the server.
func TestOwner(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	client := c.Client(t)
	err := locker.Do(ctx(t), open(client), "owner", locker.Exclusive, func(in context.Context) error {
		h, _ := locker.HeldFrom(in)
		guard, ok := etcd.Owner(h)
		if !ok {
			t.Fatal("not a lock of etcd?")
		}
		for _, want := range []bool{true, false} {
			resp, err := client.Txn(ctx(t)).If(guard).Then(clientv3.OpPut("config", "new")).Commit()
			if err != nil || resp.Succeeded != want {
				t.Errorf("guarded transaction: %v, %v, want %v", resp, err, want)
			}
			all, _ := keys(t, client, "owner")
			if len(all) == 1 { // an operator takes it away
				if _, err := client.Delete(ctx(t), all[0]); err != nil {
					t.Error(err)
				}
				// The next one has a key of the same queue, and not this guard.
				lock(t, open(client), "owner")
			}
		}
		return nil
	})
	if !errors.Is(err, locker.ErrLost) {
		t.Error(err)
	}
	file, err := locker.Dir(t.TempDir(), nil).Lock(ctx(t), "owner", locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if guard, ok := etcd.Owner(file); ok {
		t.Errorf("of a file lock: %v", guard)
	}
}

// TestWaitersOutlastAStall stops the server for a part of a TTL: a waiter whose key is still
// there goes on, as those of the stock client do.
func TestWaitersOutlastAStall(t *testing.T) {
	t.Parallel()
	const ttl = 10 * time.Second
	for _, percent := range []int{60, 90} {
		t.Run(fmt.Sprint(percent), func(t *testing.T) {
			t.Parallel()
			stall(t, size(100, 300), ttl, ttl*time.Duration(percent)/100)
		})
	}
}

func stall(t *testing.T, n int, ttl, d time.Duration) {
	c := etcdtest.Start(t, 1)
	client := c.Client(t)
	l := etcd.New(client, &etcd.Options{TTL: ttl})
	waiting, cancel := context.WithCancel(ctx(t))
	session := func() *concurrency.Session {
		s, err := concurrency.NewSession(client, concurrency.WithTTL(int(ttl/time.Second)))
		if err != nil {
			t.Error(err)
		}
		return s
	}
	lock(t, l, "ours")
	if err := concurrency.NewMutex(session(), "flockctx/stock").Lock(ctx(t)); err != nil {
		t.Fatal(err)
	}
	ours, stock := make(chan error, n), make(chan error, n)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			_, err := l.Lock(waiting, "ours", locker.Exclusive)
			ours <- err
		})
		wg.Go(func() {
			s := session()
			wg.Go(func() { <-s.Done(); stock <- waiting.Err() })
			concurrency.NewMutex(s, "flockctx/stock").Lock(waiting)
		})
	}
	waitFor(t, client, "ours", n+1)
	waitFor(t, client, "stock", n+1)
	c.Servers[0].Freeze()
	time.Sleep(d)
	c.Servers[0].Thaw()
	c.Ready()
	time.Sleep(ttl) // for whoever gives up late
	lost, stockLost := 0, len(stock)
	for range len(ours) {
		err := <-ours
		if err == nil {
			continue // granted, since the holder has lost
		}
		lost++
		if !errors.Is(err, locker.ErrLost) || strings.Contains(err.Error(), "did not confirm") {
			t.Errorf("it gave up, and not because the server said so: %v", err)
		}
	}
	t.Logf("the server was stopped for %v: of %d waiters %d were lost, of the stock client's %d", d, n, lost, stockLost)
	cancel()
	client.Close() // ends the sessions
	wg.Wait()
}
