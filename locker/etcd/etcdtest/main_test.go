//go:build unix

package etcdtest_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/etcd"
	"github.com/flockctx/flockctx/locker/etcd/etcdtest"
	"github.com/flockctx/flockctx/locker/lockertest"
)

// ttl is what a busy machine keeps.
const ttl = 5 * time.Second

func TestMain(m *testing.M) {
	etcdtest.Main()
	lockertest.Main(m, func(endpoints string) (locker.Locker, error) {
		client, err := etcdtest.NewClient(strings.Split(endpoints, ",")...)
		if err != nil {
			return nil, err
		}
		return open(client), nil
	})
}

// size returns short, or long where LOCKER_LONG is set.
func size(short, long int) int {
	if os.Getenv("LOCKER_LONG") != "" {
		return long
	}
	return short
}

func open(client *clientv3.Client) locker.Locker { return etcd.New(client, &etcd.Options{TTL: ttl}) }

func ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

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

// tapped returns a client whose calls go through unary and whose streams go through
// stream, where they are not nil.
func tapped(t testing.TB, c *etcdtest.Cluster, unary grpc.UnaryClientInterceptor, stream grpc.StreamClientInterceptor, more ...func(*clientv3.Config)) *clientv3.Client {
	t.Helper()
	config := clientv3.Config{Endpoints: c.Endpoints(), DialTimeout: 10 * time.Second, Logger: zap.NewNop()}
	if unary != nil {
		config.DialOptions = append(config.DialOptions, grpc.WithChainUnaryInterceptor(unary))
	}
	if stream != nil {
		config.DialOptions = append(config.DialOptions, grpc.WithChainStreamInterceptor(stream))
	}
	for _, f := range more {
		f(&config)
	}
	client, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// waitFor waits until n keys are in the queue for name, and returns them.
func waitFor(t testing.TB, client *clientv3.Client, name string, n int) (all []string, leases []clientv3.LeaseID) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if all, leases = keys(t, client, name); len(all) == n {
			return all, leases
		}
		if time.Now().After(limit) {
			t.Fatalf("%d keys, not %d: %v", len(all), n, all)
		}
	}
}

// keys returns the keys of the queue for name, or of all.
func keys(t testing.TB, client *clientv3.Client, name string) (keys []string, leases []clientv3.LeaseID) {
	t.Helper()
	prefix := "flockctx/"
	if name != "" {
		prefix += url.PathEscape(name) + "/"
	}
	resp, err := client.Get(ctx(t), prefix, clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		keys = append(keys, string(kv.Key))
		leases = append(leases, clientv3.LeaseID(kv.Lease))
	}
	return keys, leases
}

func faults(t testing.TB, c *etcdtest.Cluster) lockertest.Faults {
	client := c.Client(t)
	return lockertest.Faults{
		Spec:       strings.Join(c.Endpoints(), ","),
		Partitions: size(8, 60),
		Leaders:    size(6, 100),
		Residue: func(t testing.TB) []string {
			left, _ := keys(t, client, "")
			resp, err := client.Leases(ctx(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range resp.Leases {
				left = append(left, fmt.Sprintf("lease %x", l.ID))
			}
			return left
		},
		Waiters: func(t testing.TB, name string) int {
			all, _ := keys(t, client, name)
			return max(len(all)-1, 0)
		},
		Break: map[string]func(testing.TB, string){
			"lease revoked": func(t testing.TB, name string) {
				_, leases := keys(t, client, name)
				if _, err := client.Revoke(ctx(t), leases[0]); err != nil {
					t.Fatal(err)
				}
			},
			"key deleted": func(t testing.TB, name string) {
				all, _ := keys(t, client, name)
				if _, err := client.Delete(ctx(t), all[0]); err != nil {
					t.Fatal(err)
				}
			},
		},
		Network: func(t testing.TB) (locker.Locker, *lockertest.Proxy) {
			p := lockertest.NewProxy(t, "tcp", c.Servers[0].Addr())
			return open(c.Client(t, p.Addr())), p
		},
		Through: func(t testing.TB) (string, *lockertest.Proxy) {
			p := lockertest.NewProxy(t, "tcp", c.Servers[0].Addr())
			return p.Addr(), p
		},
		LongTTL: func(t testing.TB) locker.Locker { return etcd.New(c.Client(t), nil) },
		Restart: func(testing.TB) {
			for _, s := range c.Servers {
				s.Kill()
			}
			for _, s := range c.Servers {
				s.Run()
			}
			c.Ready()
		},
	}
}

func TestConformanceSingle(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	lockertest.Run(t, func(t testing.TB) locker.Locker { return open(c.Client(t)) }, faults(t, c))
}

func TestConformanceThree(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 3)
	lockertest.Run(t, func(t testing.TB) locker.Locker { return open(c.Client(t)) }, faults(t, c))
}
