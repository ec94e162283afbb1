package redis_test

import (
	"context"
	"fmt"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/flockctx/flockctx/internal/redistest"
)

// server adds to a server what is asked of it through the client library.
type server struct {
	*redistest.Server
	t testing.TB
}

func start(t testing.TB, options ...string) *server {
	t.Helper()
	return &server{redistest.Start(t, options...), t}
}

// client returns one for the server's socket, or another's.
func (s *server) client(socket string) *goredis.Client {
	if socket == "" {
		socket = s.Socket()
	}
	return newClient(s.t, socket)
}

func newClient(t testing.TB, socket string) *goredis.Client {
	c := goredis.NewClient(clientOptions(socket))
	t.Cleanup(func() { c.Close() })
	return c
}

func clientOptions(socket string) *goredis.Options {
	return &goredis.Options{Network: "unix", Addr: socket, ReadTimeout: ttl / 3, PoolSize: 20, MaxRetries: -1}
}

// do runs a command on the server.
func (s *server) do(args ...any) any {
	s.t.Helper()
	c := goredis.NewClient(clientOptions(s.Socket()))
	defer c.Close()
	r, err := c.Do(context.Background(), args...).Result()
	if err != nil && err != goredis.Nil {
		s.t.Fatalf("%v: %v", args, err)
	}
	return r
}

// lines returns the claims that the hash has.
func (s *server) lines() (all []string) {
	s.t.Helper()
	c := goredis.NewClient(clientOptions(s.Socket()))
	defer c.Close()
	fields, err := c.HGetAll(context.Background(), "flockctx").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	for name, text := range fields {
		if len(name) > 2 && name[:2] == "n:" {
			all = append(all, fmt.Sprintf("%q: %s", name[2:], text))
		}
	}
	return all
}
