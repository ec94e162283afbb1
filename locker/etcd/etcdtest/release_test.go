//go:build unix

package etcdtest_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/etcd/etcdtest"
)

// TestReleaseWithoutAnswer: a transaction whose fate is unknown is made again, and must
// not take its own work for a loss, nor a loss for its own work.
func TestReleaseWithoutAnswer(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	direct := c.Client(t)
	// Lose the next transaction on the way there or back, or let its answer come late.
	var before, after, late atomic.Bool
	l := open(tapped(t, c, func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		lost := status.Error(codes.Unavailable, "the connection broke")
		txn := strings.HasSuffix(method, "/Txn")
		if txn && before.CompareAndSwap(true, false) {
			return lost
		}
		err := next(ctx, method, req, reply, cc, opts...)
		if txn && late.CompareAndSwap(true, false) {
			time.Sleep(ttl/3 + ttl/20) // it has been sent again meanwhile
		}
		if txn && after.CompareAndSwap(true, false) {
			return lost
		}
		return err
	}, nil))
	for _, test := range []struct {
		name   string
		lose   *atomic.Bool
		delete bool // somebody else deletes the key first
		want   error
	}{
		{"on the way there", &before, false, nil},
		{"on the way back", &after, false, locker.ErrUnsure},
		{"after a loss", &before, true, locker.ErrUnsure},
		{"late on the way back", &late, false, nil},
		{"late, after a loss", &late, true, locker.ErrUnsure},
	} {
		h := lock(t, l, "fate")
		if test.delete {
			all, _ := keys(t, direct, "fate")
			if _, err := direct.Delete(ctx(t), all[0]); err != nil {
				t.Fatal(err)
			}
		}
		test.lose.Store(true)
		if err := h.Unlock(ctx(t)); !errors.Is(err, test.want) || test.lose.Load() {
			t.Errorf("%s: %v, not %v", test.name, err, test.want)
		}
		waitFor(t, direct, "fate", 0)
	}
}

// TestAKeyWithoutItsLease: an operator's put has taken the lease from the key. It does not
// stay for ever.
func TestAKeyWithoutItsLease(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	client := c.Client(t)
	l := open(client)
	put := func(i int) {
		all, _ := keys(t, client, "put")
		if _, err := client.Put(ctx(t), all[i], "by hand"); err != nil {
			t.Fatal(err)
		}
		if _, leases := keys(t, client, "put"); leases[i] != clientv3.NoLease {
			t.Fatal("it still has its lease")
		}
	}
	h := lock(t, l, "put")
	waiting, cancel := context.WithCancel(ctx(t))
	errs := make(chan error)
	go func() { _, err := l.Lock(waiting, "put", locker.Exclusive); errs <- err }()
	waitFor(t, client, "put", 2)
	put(1)
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	waitFor(t, client, "put", 1)
	put(0)
	if err := h.Unlock(ctx(t)); err != nil {
		t.Errorf("Unlock: %v", err)
	}
	waitFor(t, client, "put", 0)
}

// TestReleaseOutlastsTheLease: the server cannot be asked before the lease would have ended.
// It was held when Unlock was called, and is until it is answered.
func TestReleaseOutlastsTheLease(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	var until atomic.Int64
	l := open(tapped(t, c, func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if strings.HasSuffix(method, "/Txn") && time.Now().UnixNano() < until.Load() {
			return status.Error(codes.Unavailable, "the connection broke")
		}
		return next(ctx, method, req, reply, cc, opts...)
	}, nil))
	h := lock(t, l, "late")
	begin := time.Now()
	until.Store(begin.Add(ttl + ttl/20).UnixNano())
	if err := h.Unlock(ctx(t)); err != nil || time.Since(begin) < ttl {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
}
