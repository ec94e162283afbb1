//go:build unix

// Package peertest measures locker/redis beside its peers: bsm/redislock and
// go-redsync/redsync on one server, which poll, and the two bare commands that a lock and its
// release cost at least.
package peertest_test

import (
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	pool "github.com/go-redsync/redsync/v4/redis/goredis/v9"
	goredis "github.com/redis/go-redis/v9"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/internal/redistest"
	"github.com/flockctx/flockctx/locker/redis"
)

// ttl is how long the peers' locks last: nobody renews them.
const ttl = time.Hour

// A way to lock takes one lock, for one more of those who compete for it, and returns how
// to release it.
type way func(ctx context.Context) (unlock func(), err error)

// ways are those that are compared, each on a client of its own as in a program of its own.
// The peers poll as their documents suggest, and go on for as long as they are let.
var ways = []struct {
	name string
	open func(b *testing.B, c *goredis.Client) way
}{
	{"flockctx", func(b *testing.B, c *goredis.Client) way {
		l := redis.New(c, nil)
		b.Cleanup(func() { l.(io.Closer).Close() })
		return func(ctx context.Context) (func(), error) {
			h, err := l.Lock(ctx, "bench", flockctx.Exclusive)
			if err != nil {
				return nil, err
			}
			return func() { check(b, h.Unlock(context.Background())) }, nil
		}
	}},
	{"redislock", func(b *testing.B, c *goredis.Client) way {
		l := redislock.New(c)
		return func(ctx context.Context) (func(), error) {
			ctx, cancel := context.WithTimeout(ctx, time.Hour)
			defer cancel()
			h, err := l.Obtain(ctx, "redislock", ttl, &redislock.Options{RetryStrategy: redislock.LinearBackoff(100 * time.Millisecond)})
			if err != nil {
				return nil, err
			}
			return func() { check(b, h.Release(context.Background())) }, nil
		}
	}},
	{"redsync", func(b *testing.B, c *goredis.Client) way {
		l := redsync.New(pool.NewPool(c))
		return func(ctx context.Context) (func(), error) {
			m := l.NewMutex("redsync", redsync.WithExpiry(ttl), redsync.WithTries(1<<30))
			if err := m.LockContext(ctx); err != nil {
				return nil, err
			}
			return func() {
				if ok, err := m.Unlock(); !ok || err != nil {
					b.Errorf("%v, %v", ok, err)
				}
			}, nil
		}
	}},
}

func check(b *testing.B, err error) {
	if err != nil {
		b.Error(err)
	}
}

// client returns one for the server, as a program has it by default, but for what it waits.
func client(b *testing.B, s *redistest.Server) *goredis.Client {
	c := goredis.NewClient(&goredis.Options{Network: "unix", Addr: s.Socket()})
	b.Cleanup(func() { c.Close() })
	return c
}

// lock takes the lock and releases it, so that a server that was just started grants.
func (w way) lock(b *testing.B) (unlock func()) {
	b.Helper()
	unlock, err := w(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return unlock
}

func median(all []time.Duration) float64 {
	slices.Sort(all)
	return float64(all[len(all)/2]) / float64(time.Millisecond)
}

// BenchmarkLockUnlock takes a free lock in turn by each way, and by the two commands that it
// takes at least: SET NX, and a script that compares and deletes. It reports medians.
func BenchmarkLockUnlock(b *testing.B) {
	s := redistest.Start(b)
	var all []way
	for _, w := range ways {
		all = append(all, w.open(b, client(b, s)))
		all[len(all)-1].lock(b)()
	}
	bare := client(b, s)
	compareAndDelete := goredis.NewScript(`if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end`)
	all = append(all, func(ctx context.Context) (func(), error) {
		if ok, err := bare.SetNX(ctx, "bare", "me", ttl).Result(); !ok || err != nil {
			b.Fatalf("%v, %v", ok, err)
		}
		return func() { check(b, compareAndDelete.Run(ctx, bare, []string{"bare"}, "me").Err()) }, nil
	})
	times := make([][]time.Duration, len(all))
	for b.Loop() {
		for i, w := range all {
			began := time.Now()
			w.lock(b)()
			times[i] = append(times[i], time.Since(began))
		}
	}
	for i, w := range ways {
		b.ReportMetric(median(times[i]), w.name+"-ms")
	}
	b.ReportMetric(median(times[len(ways)]), "bare-ms")
	b.ReportMetric(median(times[0])/median(times[1]), "flockctx/redislock")
}

// BenchmarkHandOver measures from a release until all who waited, each for itself, have had
// the lock for no time, in turn by each way, and divides by their number.
func BenchmarkHandOver(b *testing.B) {
	for _, waiters := range []int{1, 50} {
		b.Run("waiters="+strconv.Itoa(waiters), func(b *testing.B) {
			s := redistest.Start(b)
			all := make([][]way, len(ways))
			for i, w := range ways {
				for range 1 + waiters {
					all[i] = append(all[i], w.open(b, client(b, s)))
				}
				all[i][0].lock(b)()
			}
			times := make([][]time.Duration, len(ways))
			for b.Loop() {
				for i := range ways {
					unlock := all[i][0].lock(b)
					had := make(chan error)
					for _, w := range all[i][1:] {
						go func() {
							unlock, err := w(b.Context())
							if err == nil {
								unlock()
							}
							had <- err
						}()
					}
					// They all wait by then, and who polls is at no particular point.
					time.Sleep(300*time.Millisecond + rand.N(200*time.Millisecond))
					began := time.Now()
					unlock()
					for range waiters {
						check(b, <-had)
					}
					times[i] = append(times[i], time.Since(began)/time.Duration(waiters))
				}
			}
			for i, w := range ways {
				b.ReportMetric(median(times[i]), w.name+"-ms")
			}
		})
	}
}

// BenchmarkAtRest has 1000 goroutines of 10 clients wait for a lock that stays taken, and
// reports what the server does for them: its commands, those inside scripts included, and
// the time of its processor.
func BenchmarkAtRest(b *testing.B) {
	for _, w := range ways {
		b.Run(w.name, func(b *testing.B) {
			s := redistest.Start(b)
			unlock := w.open(b, client(b, s)).lock(b)
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error)
			const clients, each = 10, 100
			for range clients {
				one := w.open(b, client(b, s))
				for range each {
					go func() {
						_, err := one(ctx)
						done <- err
					}()
				}
			}
			look := client(b, s)
			info := func(section, field string) float64 {
				text, err := look.Info(b.Context(), section).Result()
				check(b, err)
				_, after, _ := strings.Cut(text, "\n"+field+":")
				n, _ := strconv.ParseFloat(strings.TrimSpace(strings.SplitN(after, "\n", 2)[0]), 64)
				return n
			}
			read := func() (commands, cpu float64) {
				return info("stats", "total_commands_processed"), info("cpu", "used_cpu_user") + info("cpu", "used_cpu_sys")
			}
			time.Sleep(5 * time.Second) // until all have come
			const seconds = 15
			for b.Loop() {
				commands, cpu := read()
				time.Sleep(seconds * time.Second)
				after, cpuAfter := read()
				b.ReportMetric((after-commands)/seconds, "commands/s")
				b.ReportMetric((cpuAfter-cpu)/seconds*100, "cpu-%")
			}
			cancel()
			for range clients * each {
				<-done
			}
			unlock()
		})
	}
}
