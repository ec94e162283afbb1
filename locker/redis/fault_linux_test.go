package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/internal/leased"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/redis"
)

// info awaits a line of INFO replication.
func (s *server) info(line string) {
	s.t.Helper()
	for limit := time.Now().Add(patience); !strings.Contains(s.do("INFO", "replication").(string), line); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			s.t.Fatalf("no %s", line)
		}
	}
}

// follow makes s a replica of primary, and returns when it has its data.
func (s *server) follow(primary *server) {
	s.t.Helper()
	s.do("REPLICAOF", primary.Addr().IP.String(), primary.Addr().Port)
	s.info("master_link_status:up")
}

// A server that was demoted for a while does not know who was granted what meanwhile, though
// it was not restarted.
func TestDemotedForAWhile(t *testing.T) {
	t.Parallel()
	a, b := start(t), start(t)
	loud(t, a)
	b.follow(a)
	time.Sleep(1500 * time.Millisecond) // b has what a wrote
	a.do("REPLICAOF", "127.0.0.1", "1") // and cannot reach b
	b.do("REPLICAOF", "NO", "ONE")
	h := lock(t, open(t, b.client("")), "x")
	b.Kill()
	a.do("REPLICAOF", "NO", "ONE")
	again := open(t, a.client(""))
	if _, err := again.TryLock(within(t, patience), "x", locker.Exclusive); !errors.Is(err, flockctx.ErrLocked) {
		t.Fatalf("TryLock on the server that is promoted again: %v", err)
	}
	lock(t, again, "x")
	if h.Context().Err() == nil {
		t.Error("two hold it")
	}
}

// Many who read under one name are renewed in time.
func TestManyReaders(t *testing.T) {
	t.Parallel()
	s := start(t)
	loud(t, s)
	l := open(t, s.client(""))
	var all []locker.Held
	for range 600 {
		h, err := l.Lock(within(t, patience), "shared", locker.Shared)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h)
	}
	time.Sleep(2 * ttl)
	lost := 0
	for _, h := range all {
		if h.Context().Err() != nil {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d lost their lock: %v", lost, len(all), context.Cause(all[0].Context()))
	}
}

// A server without memory grants nothing, and takes nothing away.
func TestFullMemory(t *testing.T) {
	t.Parallel()
	s := start(t)
	loud(t, s)
	l, other := open(t, s.client("")), open(t, s.client(""))
	h := lock(t, l, "full")
	waiting := make(chan locker.Held)
	go func() { waiting <- lock(t, other, "full") }()
	for other.(*leased.Engine).Waiting("full") == 0 {
		time.Sleep(time.Millisecond)
	}
	far := time.Now().Add(time.Hour).UnixMicro()
	s.do("HSET", "flockctx", "n:left", fmt.Sprintf("DEAD 0 1 1 2 3 OWNER 1 h= n=\nLIVING 0 1 0 %d 0 OWNER 1 h= n=", far))
	s.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
	s.do("CONFIG", "SET", "maxmemory", "1")
	s.do("EVAL", script(t, "sweep.lua"), 1, "flockctx", "0")
	if left := s.do("HGET", "flockctx", "n:left").(string); !strings.HasPrefix(left, "LIVING") {
		t.Errorf("not swept: %q", left)
	}
	time.Sleep(ttl * 3 / 2)
	if err := h.Context().Err(); err != nil {
		t.Errorf("the lock was lost: %v", context.Cause(h.Context()))
	}
	if _, err := l.Lock(within(t, 5*time.Second), "another", locker.Exclusive); !errors.Is(err, locker.ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("a new lock: %v", err)
	}
	unlock(t, h)
	s.do("CONFIG", "SET", "maxmemory", "0")
	unlock(t, <-waiting)
}

// Holders returns when its context ends, whatever the client's timeouts are.
func TestHoldersOfAFrozenServer(t *testing.T) {
	t.Parallel()
	s := start(t)
	o := clientOptions(s.Socket())
	o.ReadTimeout = -1
	c := goredis.NewClient(o)
	defer c.Close()
	l := redis.New(c, nil).(locker.Inspector)
	if _, err := l.Holders(within(t, patience), "x"); err != nil {
		t.Fatal(err)
	}
	s.Signal(syscall.SIGSTOP)
	defer s.Signal(syscall.SIGCONT)
	if _, err := l.Holders(within(t, 100*time.Millisecond), "x"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, locker.ErrUnavailable) {
		t.Errorf("Holders: %v", err)
	}
}

// What is stored may be damaged, or be of a clock that was set back: it costs a TTL.
func TestDamage(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(s *server){
		"no since": func(s *server) { s.do("HDEL", "flockctx", "since") },
		"clock set back": func(s *server) {
			at := time.Now().Add(time.Hour).UnixMicro()
			s.do("HSET", "flockctx", "since", at, "token", at,
				"n:x", fmt.Sprintf("ID 0 %d %d %d %d OWNER 1 h= n=", at, at, at+ttl.Microseconds(), at))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			loud(t, s)
			damage(s)
			unlock(t, lock(t, open(t, s.client("")), "x"))
		})
	}
}

// The connection for notices goes a TTL after the last wait, also where a call is under way
// then.
func TestListeningEnds(t *testing.T) {
	t.Parallel()
	s := start(t)
	opts := &redis.Options{TTL: time.Second, Key: "k"}
	l, other := redis.New(s.client(""), opts), redis.New(s.client(""), opts)
	h := lock(t, other, "a")
	got := make(chan locker.Held)
	go func() { got <- lock(t, l, "a") }()
	subscribed := func() bool { return len(s.do("PUBSUB", "CHANNELS", "k:*").([]any)) > 0 }
	for !subscribed() {
		time.Sleep(time.Millisecond)
	}
	unlock(t, h)
	unlock(t, <-got)
	time.Sleep(opts.TTL * 9 / 10)
	s.Signal(syscall.SIGSTOP)
	tried := make(chan error)
	go func() { _, err := l.TryLock(within(t, patience), "b", locker.Exclusive); tried <- err }()
	time.Sleep(opts.TTL * 3 / 10)
	s.Signal(syscall.SIGCONT)
	if err := <-tried; err != nil && !errors.Is(err, flockctx.ErrLocked) {
		t.Error(err)
	}
	for limit := time.Now().Add(patience); subscribed(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("it listens on")
		}
	}
}

// late has each answer come late.
type late time.Duration

func (l late) DialHook(n goredis.DialHook) goredis.DialHook { return n }
func (l late) ProcessPipelineHook(n goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return n
}
func (l late) ProcessHook(n goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		err := n(ctx, cmd)
		time.Sleep(time.Duration(l))
		return err
	}
}

// A grant that is always answered too late is none, and the error says why.
func TestLateAnswers(t *testing.T) {
	t.Parallel()
	s := start(t)
	loud(t, s)
	c := s.client("")
	c.AddHook(late(600 * time.Millisecond))
	l := redis.New(c, &redis.Options{TTL: time.Second})
	if _, err := l.TryLock(within(t, 3*time.Second), "x", locker.Exclusive); err == nil || !strings.Contains(err.Error(), "half a TTL") {
		t.Errorf("TryLock: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer time.AfterFunc(11*time.Second, cancel).Stop() // longer than a server is looked for
	if _, err := l.Lock(ctx, "y", locker.Exclusive); !errors.Is(err, context.Canceled) {
		t.Errorf("Lock: %v", err)
	}
}

const slots = 16384 // of a cluster

// startCluster starts a cluster of n servers, of which the first few have the slots.
func startCluster(t *testing.T, n, primaries int, timeout time.Duration) (all []*server) {
	t.Helper()
	const bus = "16379" // by default 10,000 above the port, which may be more than there are
	for i := range n {
		s := start(t, "--cluster-enabled", "yes", "--cluster-node-timeout", strconv.Itoa(int(timeout.Milliseconds())), "--cluster-port", bus)
		s.do("CONFIG", "SET", "cluster-announce-ip", s.Addr().IP.String())
		s.do("CLUSTER", "SET-CONFIG-EPOCH", i+1)
		if i < primaries {
			s.do("CLUSTER", "ADDSLOTSRANGE", (i*slots+primaries-1)/primaries, ((i+1)*slots+primaries-1)/primaries-1)
		}
		if i > 0 {
			all[0].do("CLUSTER", "MEET", s.Addr().IP.String(), s.Addr().Port, bus)
		}
		all = append(all, s)
	}
	nodes := fmt.Sprintf("cluster_known_nodes:%d", n)
	limit := time.Now().Add(patience)
	for _, s := range all {
		for info := ""; !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, nodes); time.Sleep(20 * time.Millisecond) {
			if info = s.do("CLUSTER", "INFO").(string); time.Now().After(limit) {
				t.Fatalf("the cluster does not form: %s", info)
			}
		}
	}
	return all
}

// A cluster's replica takes over with its locks.
func TestClusterFailover(t *testing.T) {
	t.Parallel()
	m := startCluster(t, 4, 3, 1500*time.Millisecond)
	var addrs []string
	for _, s := range m {
		addrs = append(addrs, s.Addr().String())
	}
	slot, _ := m[0].do("CLUSTER", "KEYSLOT", "flockctx").(int64)
	owner := m[slot*3/slots]
	m[3].do("CLUSTER", "REPLICATE", owner.do("CLUSTER", "MYID"))
	m[3].info("master_link_status:up")
	c := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: addrs, ReadTimeout: time.Second, DialTimeout: time.Second})
	defer c.Close()
	l := redis.New(c, &redis.Options{TTL: 4 * ttl})
	h := lock(t, l, "x")
	time.Sleep(time.Second) // the replica has it
	owner.Kill()
	m[3].info("role:master")
	promoted := time.Now()
	for {
		if until, _ := h.Valid(); until.After(promoted.Add(4 * ttl * 9 / 10)) { // renewed since
			break
		}
		if h.Context().Err() != nil {
			t.Fatalf("the lock is lost %v after the promotion: %v", time.Since(promoted), context.Cause(h.Context()))
		}
		time.Sleep(10 * time.Millisecond)
	}
}
