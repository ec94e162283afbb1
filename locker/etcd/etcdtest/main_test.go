//go:build unix

package etcdtest_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/etcd"
	"github.com/flockctx/flockctx/locker/etcd/etcdtest"
	"github.com/flockctx/flockctx/locker/lockertest"
)

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

// partitions returns how many partitions to inject: n, or 60 where LOCKER_LONG is set.
func partitions(n int) int {
	if os.Getenv("LOCKER_LONG") != "" {
		return 60
	}
	return n
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
		Partitions: partitions(8),
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
