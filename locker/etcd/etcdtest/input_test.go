//go:build unix

package etcdtest_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/etcd"
	"github.com/flockctx/flockctx/locker/etcd/etcdtest"
	"github.com/flockctx/flockctx/locker/lockertest"
)

// refused fails unless Lock and TryLock of l fail within limit with an error that has
// all of words.
func refused(t *testing.T, l locker.Locker, limit time.Duration, is error, words ...string) {
	t.Helper()
	for _, f := range []func(context.Context, string, locker.Mode) (locker.Held, error){l.Lock, l.TryLock} {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		begin := time.Now()
		h, err := f(ctx, "refused", locker.Exclusive)
		cancel()
		if err == nil {
			t.Fatalf("granted %v", h)
		}
		if is != nil && !errors.Is(err, is) {
			t.Errorf("%v: not %v", err, is)
		}
		for _, word := range words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q is not in: %v", word, err)
			}
		}
		t.Logf("after %v: %v", time.Since(begin).Round(time.Millisecond), err)
	}
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	t.Run("TTL below the floor", func(t *testing.T) {
		refused(t, etcd.New(c.Client(t), &etcd.Options{TTL: time.Second}), time.Minute, nil, "TTL", "1s", "2s")
	})
	t.Run("no client", func(t *testing.T) {
		refused(t, etcd.New(nil, nil), time.Minute, nil, "client")
	})
	t.Run("no server", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		refused(t, open(c.Client(t, l.Addr().String())), 2*time.Second, context.DeadlineExceeded, "no connection to etcd at "+l.Addr().String())
	})
	t.Run("no server and no deadline", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		_, err = open(c.Client(t, l.Addr().String())).Lock(context.Background(), "refused", locker.Exclusive)
		if err == nil || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "no connection to etcd at "+l.Addr().String()) {
			t.Error(err)
		}
		t.Log(err)
	})
	t.Run("a server that says nothing", func(t *testing.T) {
		p := lockertest.NewProxy(t, "tcp", c.Servers[0].Addr())
		p.Swallow(lockertest.Both)
		refused(t, open(c.Client(t, p.Addr())), 500*time.Millisecond, context.DeadlineExceeded, "to etcd at "+p.Addr())
	})
	t.Run("a server without the API", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		go s.Serve(l)
		t.Cleanup(s.Stop)
		refused(t, open(c.Client(t, l.Addr().String())), time.Minute, errors.ErrUnsupported, "API of etcd 3")
	})
	t.Run("wrong credentials", func(t *testing.T) {
		c := etcdtest.Start(t, 1)
		admin := c.Client(t)
		for _, f := range []func() error{
			func() error { _, err := admin.UserAdd(ctx(t), "root", "secret"); return err },
			func() error { _, err := admin.UserGrantRole(ctx(t), "root", "root"); return err },
			func() error { _, err := admin.UserAdd(ctx(t), "guest", "guest"); return err },
			func() error { _, err := admin.AuthEnable(ctx(t)); return err },
		} {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
		refused(t, open(c.Client(t)), time.Minute, nil, "credentials")
		for password, word := range map[string]string{"wrong": "authentication failed", "guest": "permission denied"} {
			client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Username: "guest", Password: password, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
			if err != nil {
				t.Log(err) // New itself asks for a token
				if !strings.Contains(err.Error(), word) {
					t.Error(err)
				}
				continue
			}
			t.Cleanup(func() { client.Close() })
			refused(t, open(client), time.Minute, nil, "credentials", word)
		}
	})
	if left, _ := keys(t, c.Client(t), ""); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestLatency logs figures, with LOCKER_LONG those of docs/distributed.md. It is not
// parallel, so that little else runs.
func TestLatency(t *testing.T) {
	clusters, n := []int{1}, 20
	if os.Getenv("LOCKER_LONG") != "" {
		clusters, n = []int{1, 3}, 200
	}
	for _, servers := range clusters {
		c := etcdtest.Start(t, servers)
		name := map[int]string{1: "one server", 3: "three servers"}[servers]
		ours := func() func() func() {
			l := etcd.New(c.Client(t), nil)
			return func() func() {
				h := lock(t, l, "latency")
				return func() {
					if err := h.Unlock(ctx(t)); err != nil {
						t.Error(err)
					}
				}
			}
		}
		// The stock Mutex with a session of its own, as it must be to exclude
		// every other user of it, and with one session for all.
		stock := func(shared bool) func() func() {
			client := c.Client(t)
			var s *concurrency.Session
			return func() func() {
				var err error
				if s == nil || !shared {
					if s, err = concurrency.NewSession(client); err != nil {
						t.Fatal(err)
					}
				}
				s := s
				m := concurrency.NewMutex(s, "stock")
				if err := m.Lock(ctx(t)); err != nil {
					t.Fatal(err)
				}
				return func() {
					if err := m.Unlock(ctx(t)); err != nil {
						t.Error(err)
					}
					if !shared {
						s.Close()
					}
				}
			}
		}
		lockertest.Latency(t, name+", flockctx", n, ours())
		lockertest.Latency(t, name+", stock Mutex, a session each", n, stock(false))
		lockertest.Latency(t, name+", stock Mutex, one session", n, stock(true))
		for _, pause := range []time.Duration{20 * time.Millisecond, 200 * time.Millisecond} {
			lockertest.HandOver(t, name+", flockctx", n/4, pause, ours(), ours())
			lockertest.HandOver(t, name+", stock Mutex, one session", n/4, pause, stock(true), stock(true))
		}
		for _, s := range c.Servers {
			s.Kill()
		}
	}
}
