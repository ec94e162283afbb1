package redis_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/internal/leased"
	"github.com/flockctx/flockctx/internal/redistest"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/lockertest"
	"github.com/flockctx/flockctx/locker/redis"
)

const (
	ttl      = 5 * time.Second
	patience = time.Minute
)

// A Spec is the path of a socket.
func TestMain(m *testing.M) {
	goredis.SetLogger(silent{}) // servers that go are the tests' business
	lockertest.Main(m, func(socket string) (locker.Locker, error) {
		return redis.New(goredis.NewClient(clientOptions(socket)), &redis.Options{TTL: ttl}), nil
	})
}

// silent is a logger.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// long returns the greater number where LOCKER_LONG is set.
func long(short, long int) int {
	if os.Getenv("LOCKER_LONG") != "" {
		return long
	}
	return short
}

// lockers are all that a suite has opened: of the goroutines of one, the server sees only
// the first that waits.
type lockers struct {
	mu  sync.Mutex // guards all
	all []locker.Locker
}

// open returns a Locker with a client of its own, through the socket.
func (l *lockers) open(t testing.TB, socket string) locker.Locker {
	one := open(t, newClient(t, socket))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, one)
	return one
}

func open(t testing.TB, c goredis.UniversalClient) locker.Locker {
	l := redis.New(c, &redis.Options{TTL: ttl})
	t.Cleanup(func() {
		if err := l.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *lockers) waiting(name string) (n int) {
	if name == "fifo" {
		// The server learns by a call's own word when its wait began, as exactly
		// as requests take equally long to arrive.
		time.Sleep(200 * time.Millisecond)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.all {
		n += one.(*leased.Engine).Waiting(name)
	}
	return n
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func lock(t testing.TB, l locker.Locker, name string) locker.Held {
	t.Helper()
	h, err := l.Lock(within(t, patience), name, locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func unlock(t testing.TB, h locker.Held) {
	t.Helper()
	if err := h.Unlock(within(t, patience)); err != nil {
		t.Fatal(err)
	}
}

// loud waits until the server grants.
func loud(t testing.TB, s *server) {
	t.Helper()
	l := open(t, s.client(""))
	unlock(t, lock(t, l, "loud"))
}

func suite(t *testing.T, s *server) {
	loud(t, s)
	var all lockers
	proxy := func(t testing.TB) *lockertest.Proxy { return lockertest.NewProxy(t, "unix", s.Socket()) }
	lockertest.Run(t, func(t testing.TB) locker.Locker { return all.open(t, s.Socket()) }, lockertest.Faults{
		Spec:       s.Socket(),
		Partitions: long(8, 60),
		Leaders:    long(0, 100),
		Residue: func(t testing.TB) []string {
			now := time.Now().UnixMicro()
			var left []string
			for _, line := range s.lines() {
				// What has expired belongs to clients that were closed before
				// they had given it up.
				for _, claim := range strings.Split(line[strings.Index(line, ": ")+2:], "\n") {
					if expires, _ := strconv.ParseInt(strings.Fields(claim)[4], 10, 64); expires > now {
						left = append(left, line)
					}
				}
			}
			return left
		},
		Waiters: func(t testing.TB, name string) int {
			holders, err := open(t, s.client("")).(locker.Inspector).Holders(within(t, patience), name)
			if err != nil {
				t.Fatal(err)
			}
			others := 0
			for _, h := range holders {
				if h.Waiting && h.PID != os.Getpid() {
					others++
				}
			}
			return all.waiting(name) + others
		},
		Break: map[string]func(testing.TB, string){
			"field deleted": func(t testing.TB, name string) {
				if n := s.do("HDEL", "flockctx", "n:"+name); n != int64(1) {
					t.Fatalf("deleted: %v", n)
				}
			},
		},
		Network: func(t testing.TB) (locker.Locker, *lockertest.Proxy) {
			p := proxy(t)
			return all.open(t, p.Addr()), p
		},
		Through: func(t testing.TB) (string, *lockertest.Proxy) {
			p := proxy(t)
			return p.Addr(), p
		},
		Restart: func(testing.TB) { s.Restart() },
	})
}

func TestConformance(t *testing.T) {
	for _, program := range redistest.Programs(t) {
		t.Run(filepath.Base(program), func(t *testing.T) {
			t.Parallel()
			suite(t, &server{redistest.StartProgram(t, program, "--appendonly", "yes", "--appendfsync", "always"), t})
		})
	}
}

// busy fails unless the name is taken, or the server quiet.
func busy(t testing.TB, l locker.Locker, name string) {
	t.Helper()
	if h, err := l.TryLock(within(t, patience), name, locker.Exclusive); !errors.Is(err, flockctx.ErrLocked) {
		t.Fatalf("TryLock of what may be held: %v, %v", h, err)
	}
}
