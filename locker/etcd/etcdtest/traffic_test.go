//go:build unix

package etcdtest_test

import (
)

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
