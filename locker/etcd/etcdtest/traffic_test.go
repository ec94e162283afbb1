//go:build unix

package etcdtest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/etcd"
	"github.com/flockctx/flockctx/locker/etcd/etcdtest"
)

// traffic counts what a client asks of its servers.
type traffic struct {
	calls, streams, renewers, watchers, authentications, messages atomic.Int64

	// renewal and watch, if not nil, get each stream of renewals or watches, and return
	// the one that the client is to have.
	renewal, watch func(n int64, s grpc.ClientStream) (grpc.ClientStream, error)
}

func (tr *traffic) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	tr.calls.Add(1)
	if strings.HasSuffix(method, "/Authenticate") {
		tr.authentications.Add(1)
	}
	return next(ctx, method, req, reply, cc, opts...)
}

func (tr *traffic) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	tr.streams.Add(1)
	s, err := next(ctx, desc, cc, method, opts...)
	switch method[strings.LastIndex(method, "/"):] {
	case "/LeaseKeepAlive":
		if n := tr.renewers.Add(1); tr.renewal != nil && err == nil {
			s, err = tr.renewal(n, s)
		}
	case "/Watch":
		if n := tr.watchers.Add(1); tr.watch != nil && err == nil {
			s, err = tr.watch(n, s)
		}
	}
	if err == nil {
		s = counted{s, tr}
	}
	return s, err
}

type counted struct {
	grpc.ClientStream
	tr *traffic
}

func (s counted) SendMsg(m any) error { s.tr.messages.Add(1); return s.ClientStream.SendMsg(m) }

func (tr *traffic) client(t testing.TB, c *etcdtest.Cluster, more ...func(*clientv3.Config)) *clientv3.Client {
	return tapped(t, c, tr.unary, tr.stream, more...)
}

// TestOutageCostsLittle: a holder that is told by something in between, such as a proxy,
// that no server can be reached asks again at a pace.
func TestOutageCostsLittle(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	var outage atomic.Bool
	tr := &traffic{}
	tr.renewal = func(n int64, s grpc.ClientStream) (grpc.ClientStream, error) {
		if outage.Load() {
			return nil, status.Error(codes.Unavailable, "no upstream")
		}
		return s, nil
	}
	h := lock(t, open(tr.client(t, c)), "outage")
	outage.Store(true)
	lost(t, h)
	t.Logf("asked %d times in %v", tr.renewers.Load(), ttl)
	if tr.renewers.Load() > 100 {
		t.Errorf("asked %d times in %v", tr.renewers.Load(), ttl)
	}
}

// silent is a stream to a server that says nothing.
type silent struct{ grpc.ClientStream }

func (s silent) RecvMsg(any) error {
	<-s.Context().Done()
	return status.FromContextError(s.Context().Err()).Err()
}

// TestASilentStreamIsReplaced: renewals go over a second stream while the first one says
// nothing, and over the one that answers from then on.
func TestASilentStreamIsReplaced(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	tr := &traffic{renewal: func(n int64, s grpc.ClientStream) (grpc.ClientStream, error) {
		if n <= 2 {
			return silent{s}, nil
		}
		return s, nil
	}}
	l := open(tr.client(t, c))
	var all []locker.Held
	for i := range 20 {
		all = append(all, lock(t, l, fmt.Sprint("silent", i)))
	}
	holds(t, all[0], 2*ttl)
	if n := tr.renewers.Load(); n < 3 || n > 6 {
		t.Errorf("%d streams", n)
	}
	for _, h := range all {
		if err := h.Unlock(ctx(t)); err != nil {
			t.Error(err)
		}
	}
}

// TestASilentWatchIsReplaced: a waiter whose watch is on a server that says nothing any
// more gets the lock all the same, and a holder hears of its loss.
func TestASilentWatchIsReplaced(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	direct := c.Client(t)
	tr := &traffic{watch: func(n int64, s grpc.ClientStream) (grpc.ClientStream, error) {
		if n == 1 {
			return silent{s}, nil
		}
		return s, nil
	}}
	l := open(tr.client(t, c))
	front, held := lock(t, open(direct), "watch"), lock(t, l, "watched")
	next := make(chan locker.Held)
	go func() { next <- lock(t, l, "watch") }()
	waitFor(t, direct, "watch", 2)
	if err := front.Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
	all, _ := keys(t, direct, "watched")
	if _, err := direct.Delete(ctx(t), all[0]); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	lost(t, held)
	if err := (<-next).Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
	t.Logf("after %v", time.Since(begin))
}

// TestARefusedLeaseHarmsNoOther: an answer about one lease ends the stream for all.
func TestARefusedLeaseHarmsNoOther(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	var refused atomic.Int64 // the lease
	tr := &traffic{renewal: func(n int64, s grpc.ClientStream) (grpc.ClientStream, error) {
		return &refusing{ClientStream: s, id: &refused}, nil
	}}
	client := tr.client(t, c)
	l := open(client)
	bad := lock(t, l, "refused")
	_, leases := keys(t, client, "refused")
	var good []locker.Held
	for i := range 10 {
		good = append(good, lock(t, l, fmt.Sprint("good", i)))
	}
	refused.Store(int64(leases[0]))
	lost(t, bad)
	holds(t, good[0], ttl)
	for _, h := range good {
		if err := h.Unlock(ctx(t)); err != nil {
			t.Error(err)
		}
	}
}

// refusing is a stream whose server may not renew one lease.
type refusing struct {
	grpc.ClientStream
	id      *atomic.Int64
	refused atomic.Bool
}

func (s *refusing) SendMsg(m any) error {
	if r, ok := m.(interface{ GetID() int64 }); ok && r.GetID() == s.id.Load() {
		s.refused.Store(true)
		return nil // the server would end the stream now
	}
	return s.ClientStream.SendMsg(m)
}

func (s *refusing) RecvMsg(m any) error {
	done := make(chan error, 1)
	go func() { done <- s.ClientStream.RecvMsg(m) }()
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(5 * time.Millisecond):
			if s.refused.Load() {
				return status.Error(codes.PermissionDenied, "etcdserver: permission denied")
			}
		}
	}
}

// TestWaitersAskNothing: while nothing happens, waiters cost no requests.
func TestWaitersAskNothing(t *testing.T) {
	t.Parallel()
	n, window, limit := size(100, 1000), ttl, int64(10)
	var opts *etcd.Options
	if n == 100 {
		opts = &etcd.Options{TTL: ttl}
	} else {
		window, limit = 15*time.Second, 100
	}
	c := etcdtest.Start(t, 1)
	tr := &traffic{}
	client := tr.client(t, c)
	l := etcd.New(client, opts)
	h := lock(t, l, "rest")
	waiting, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := l.Lock(waiting, "rest", locker.Exclusive); !errors.Is(err, context.Canceled) {
				t.Errorf("it ended with %v", err)
			}
		})
	}
	waitFor(t, c.Client(t), "rest", n+1)
	var asked int64
	for range 5 { // the first time they may still be about to settle
		asked = -tr.calls.Load() - tr.streams.Load()
		messages := tr.messages.Load()
		holds(t, h, window)
		asked += tr.calls.Load() + tr.streams.Load()
		t.Logf("%d waiters made %d requests in %v, and sent %d messages over streams", n, asked, window, tr.messages.Load()-messages)
		if asked <= limit {
			break
		}
	}
	if asked > limit {
		t.Errorf("%d waiters made %d requests in %v", n, asked, window)
	}
	cancel()
	wg.Wait()
	if err := h.Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
}

// TestManyLocksWithAPassword: each stream costs the server a bcrypt, so there must be few.
func TestManyLocksWithAPassword(t *testing.T) {
	t.Parallel()
	sets := map[time.Duration]int{15 * time.Second: 40}
	window := 20 * time.Second
	if os.Getenv("LOCKER_LONG") != "" {
		sets = map[time.Duration]int{15 * time.Second: 150, 2 * time.Second: 40}
		window = time.Minute
	}
	c := etcdtest.Start(t, 1)
	withPassword(t, c.Client(t))
	tr := &traffic{}
	client := tr.client(t, c, func(c *clientv3.Config) { c.Username, c.Password = "root", "secret" })
	all := map[string]locker.Held{}
	for ttl, n := range sets {
		l := etcd.New(client, &etcd.Options{TTL: ttl})
		for i := range n {
			name := fmt.Sprint(ttl, i)
			all[name] = lock(t, l, name)
		}
	}
	before, asked := c.Servers[0].CPU(), tr.authentications.Load()
	time.Sleep(window)
	t.Logf("%d locks for %v: server's CPU %.1f %%, %d authentications, %d streams of renewals",
		len(all), window, 100*float64(c.Servers[0].CPU()-before)/float64(window), tr.authentications.Load()-asked, tr.renewers.Load())
	for name, h := range all {
		if err := h.Unlock(ctx(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if tr.renewers.Load() > 10 {
		t.Errorf("%d streams of renewals", tr.renewers.Load())
	}
}
