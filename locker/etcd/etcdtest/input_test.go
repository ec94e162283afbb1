//go:build unix

package etcdtest_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
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

// withPassword has the cluster of admin ask for one: of root, or of a guest who may nothing.
func withPassword(t *testing.T, admin *clientv3.Client) {
	t.Helper()
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
		if !errors.Is(err, locker.ErrUnavailable) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no connection to etcd at "+l.Addr().String()) {
			t.Error(err)
		}
		t.Log(err)
	})
	t.Run("a server that says nothing", func(t *testing.T) {
		p := lockertest.NewProxy(t, "tcp", c.Servers[0].Addr())
		p.Swallow(lockertest.Both)
		refused(t, open(c.Client(t, p.Addr())), 500*time.Millisecond, context.DeadlineExceeded, "to etcd at "+p.Addr())
		refused(t, open(c.Client(t, p.Addr())), 500*time.Millisecond, locker.ErrUnavailable)
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
		withPassword(t, admin)
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
	t.Run("a closed client", func(t *testing.T) {
		client := c.Client(t)
		client.Close()
		refused(t, open(client), time.Minute, fs.ErrClosed, "client")
	})
	if left, _ := keys(t, c.Client(t), ""); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestOldServer: the client's log says what an old server cannot do.
func TestOldServer(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	for version, warns := range map[string]int{"3.4.30": 1, "3.5.12": 1, "3.5.13": 0, "3.10.0": 0, "4.0.0": 0, "new": 0, "": 0} {
		core, logs := observer.New(zap.WarnLevel)
		told := make(chan bool, 10)
		client := tapped(t, c, func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := next(ctx, method, req, reply, cc, opts...)
			if r, ok := reply.(*pb.StatusResponse); ok {
				r.Version = version
				told <- true
			}
			return err
		}, nil, func(c *clientv3.Config) { c.Logger = zap.New(core) })
		l := open(client)
		for range 2 {
			if err := lock(t, l, "old").Unlock(ctx(t)); err != nil {
				t.Error(err)
			}
		}
		<-told
		for limit := time.Now().Add(200 * time.Millisecond); logs.FilterMessageSnippet("two hold a lock").Len() < 1 && time.Now().Before(limit); {
			time.Sleep(time.Millisecond)
		}
		if got := logs.FilterMessageSnippet("etcd " + version + " may let two hold a lock").Len(); got != warns || len(told) > 0 {
			t.Errorf("%q: warned %d times, asked %d times more", version, got, len(told))
		}
	}
}
