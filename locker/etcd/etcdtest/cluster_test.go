//go:build unix

package etcdtest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/etcd"
	"github.com/flockctx/flockctx/locker/etcd/etcdtest"
	"github.com/flockctx/flockctx/locker/lockertest"
)

func lock(t testing.TB, l locker.Locker, name string) locker.Held {
	t.Helper()
	h, err := l.Lock(ctx(t), name, locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// holds fails unless h is held for d.
func holds(t testing.TB, h locker.Held, d time.Duration) {
	t.Helper()
	select {
	case <-h.Context().Done():
		t.Fatal(context.Cause(h.Context()))
	case <-time.After(d):
	}
}

// lost waits until h is lost.
func lost(t testing.TB, h locker.Held) {
	t.Helper()
	select {
	case <-h.Context().Done():
	case <-time.After(time.Minute):
		t.Fatal("the lock is still held")
	}
	if err := context.Cause(h.Context()); !errors.Is(err, locker.ErrLost) {
		t.Fatalf("cause %v", err)
	}
}

// TestServers breaks servers of a cluster of three, and looks at who holds.
func TestServers(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 3)

	// With a TTL well above an election, a holder outlives its leader.
	t.Run("the leader is killed", func(t *testing.T) {
		l := etcd.New(c.Client(t), &etcd.Options{TTL: 6 * time.Second})
		h := lock(t, l, "leader")
		token, _ := h.Token()
		waiter := make(chan locker.Held, 1)
		go func() {
			h, err := l.Lock(ctx(t), "leader", locker.Exclusive)
			if err != nil {
				t.Error(err)
			}
			waiter <- h
		}()
		leader, _ := c.Leader()
		leader.Kill()
		holds(t, h, 8*time.Second)
		select {
		case <-waiter:
			t.Fatal("two holders")
		default:
		}
		if err := h.Unlock(ctx(t)); err != nil {
			t.Errorf("Unlock without the old leader: %v", err)
		}
		next := <-waiter
		if second, _ := next.Token(); second.N <= token.N || second.Epoch != token.Epoch {
			t.Errorf("token %v after %v", second, token)
		}
		if err := next.Unlock(ctx(t)); err != nil {
			t.Error(err)
		}
		leader.Run()
		c.Ready()
	})

	t.Run("a follower is frozen", func(t *testing.T) {
		client := c.Client(t)
		l := open(client)
		_, followers := c.Leader()
		for i, f := range followers {
			h := lock(t, l, "follower")
			f.Freeze()
			holds(t, h, 3*ttl)
			if err := h.Unlock(ctx(t)); err != nil {
				t.Errorf("Unlock with follower %d frozen: %v", i, err)
			}
			f.Thaw()
			c.Ready()
		}
	})

	t.Run("the leader is frozen", func(t *testing.T) {
		// Several clients, so that some have their streams at the leader.
		const n = 6
		type lockOf struct {
			h              locker.Held
			ended, granted chan time.Time
		}
		var all []lockOf
		var wg sync.WaitGroup
		for i := range n {
			a, b := open(c.Client(t)), open(c.Client(t))
			name := fmt.Sprint("freeze", i)
			l := lockOf{lock(t, a, name), make(chan time.Time, 1), make(chan time.Time, 1)}
			context.AfterFunc(l.h.Context(), func() { l.ended <- time.Now() })
			wg.Go(func() {
				h, err := b.Lock(ctx(t), name, locker.Exclusive)
				for errors.Is(err, locker.ErrLost) {
					// Its place in the queue goes with the leader if the
					// election takes as long as the TTL.
					h, err = b.Lock(ctx(t), name, locker.Exclusive)
				}
				l.granted <- time.Now()
				if err != nil {
					t.Error(err)
					return
				}
				// It may have been lost to the election again.
				if err := h.Unlock(ctx(t)); err != nil && !errors.Is(err, locker.ErrLost) {
					t.Error(err)
				}
			})
			for waiting := 0; waiting != 2; {
				all, _ := keys(t, c.Client(t), name)
				waiting = len(all)
			}
			all = append(all, l)
		}
		leader, _ := c.Leader()
		leader.Freeze()
		time.Sleep(3 * ttl)
		var apart []time.Duration
		for _, l := range all {
			// It is held by the one or by the other, or was handed on.
			l.h.Unlock(ctx(t))
			end, grant := <-l.ended, <-l.granted
			apart = append(apart, grant.Sub(end).Round(time.Millisecond))
			if grant.Before(end) {
				t.Error("two holders")
			}
		}
		wg.Wait()
		leader.Thaw()
		c.Ready()
		t.Logf("from the end of the holder's Context to the next grant: %v", apart)
	})

	t.Run("quorum is lost", func(t *testing.T) {
		client := c.Client(t)
		l := open(client)
		h := lock(t, l, "quorum")
		leader, followers := c.Leader()
		leader.Freeze()
		followers[0].Freeze()
		begin := time.Now()
		lost(t, h)
		t.Logf("Context ended after %v", time.Since(begin))
		for _, f := range []func(context.Context, string, locker.Mode) (locker.Held, error){l.Lock, l.TryLock} {
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			if h, err := f(ctx, "quorum", locker.Exclusive); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("without quorum: %v, %v", h, err)
			} else {
				t.Log(err)
			}
			cancel()
		}
		short, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if err := h.Unlock(short); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Unlock: %v", err)
		}
		leader.Thaw()
		followers[0].Thaw()
		c.Ready()
		if err := lock(t, l, "quorum").Unlock(ctx(t)); err != nil {
			t.Error(err)
		}
		if all, _ := keys(t, client, "quorum"); len(all) > 0 {
			t.Errorf("left: %v", all)
		}
	})
}

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
		var all []string
		var leases []clientv3.LeaseID
		for len(all) < 2 {
			all, leases = keys(t, client, "place")
		}
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
	for {
		if all, _ := keys(t, client, "stock"); len(all) == 2 {
			break
		}
	}
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

// TestControl partitions the stock client's session and Mutex: it has two holders at
// times, which shows that the same injection against this package would find them.
func TestControl(t *testing.T) {
	t.Parallel()
	n := partitions(12)
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

// TestOutageCostsLittle: a holder that is told by something in between, such as a proxy,
// that no server can be reached asks again at a pace.
func TestOutageCostsLittle(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	var asked atomic.Int64
	var outage atomic.Bool
	client, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints(),
		Logger:    zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			if strings.HasSuffix(method, "LeaseKeepAlive") {
				asked.Add(1)
				if outage.Load() {
					return nil, status.Error(codes.Unavailable, "no upstream")
				}
			}
			return next(ctx, desc, cc, method, opts...)
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	h := lock(t, open(client), "outage")
	outage.Store(true)
	lost(t, h)
	t.Logf("asked %d times in %v", asked.Load(), ttl)
	if asked.Load() > 200 {
		t.Errorf("asked %d times in %v", asked.Load(), ttl)
	}
}
