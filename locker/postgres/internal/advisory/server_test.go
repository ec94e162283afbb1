//go:build unix

package advisory_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flockctx/flockctx/internal/pgtest"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/lockertest"
	"github.com/flockctx/flockctx/locker/postgres/internal/advisory"
)

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func lock(t testing.TB, l locker.Locker, name string) locker.Held {
	t.Helper()
	h, err := l.Lock(within(t, time.Minute), name, locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func unlock(t testing.TB, h locker.Held) {
	t.Helper()
	if err := h.Unlock(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
}

func exec1(t testing.TB, s *pgtest.Server, sql string) {
	t.Helper()
	ctx := within(t, time.Minute)
	conn, err := pgx.Connect(ctx, s.DSN(""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		t.Fatal(err)
	}
}

// refused fails unless Lock and TryLock of l fail with an error that has all of words.
func refused(t *testing.T, l locker.Locker, is error, words ...string) {
	t.Helper()
	for _, f := range []func(context.Context, string, locker.Mode) (locker.Held, error){l.Lock, l.TryLock} {
		begin := time.Now()
		h, err := f(within(t, 5*time.Second), "refused", locker.Exclusive)
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

func TestBadInput(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	t.Run("TTL below the floor", func(t *testing.T) {
		refused(t, advisory.New(s.DSN(""), &advisory.Options{TTL: time.Millisecond}), nil, "TTL", "1ms", "1s")
	})
	t.Run("malformed DSN", func(t *testing.T) {
		refused(t, open("postgres://%zz"), nil, "parse")
	})
	t.Run("no server", func(t *testing.T) {
		refused(t, open("host="+t.TempDir()+" user=postgres"), nil, "cannot be reached")
	})
	t.Run("a server that says nothing", func(t *testing.T) {
		p := lockertest.NewProxy(t, "unix", s.Socket())
		p.Swallow(lockertest.Both)
		l := open(s.DSN(filepath.Dir(p.Addr())))
		_, err := l.Lock(within(t, 300*time.Millisecond), "refused", locker.Exclusive)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer") {
			t.Errorf("%v", err)
		}
		t.Log(err)
		p.Heal()
	})
	t.Run("wrong credentials", func(t *testing.T) {
		refused(t, open(s.DSN("")+" user=nobody_of_that_name"), nil, "credentials")
	})
	t.Run("wrong database", func(t *testing.T) {
		refused(t, open(strings.Replace(s.DSN(""), "dbname=postgres", "dbname=missing", 1)), nil, "missing")
	})
	t.Run("no right to make the sequence", func(t *testing.T) {
		exec1(t, s, "create role guest login")
		l := advisory.New(strings.Replace(s.DSN(""), "user=postgres", "user=guest", 1), &advisory.Options{TTL: ttl, Sequence: "public.guests"})
		refused(t, l, nil, "public", "guests", "permission denied")
		exec1(t, s, "create sequence guests; grant usage on sequence guests to guest")
		unlock(t, lock(t, l, "guest"))
	})
	t.Run("a sequence that does not rise", func(t *testing.T) {
		exec1(t, s, "create sequence cached cache 10")
		refused(t, advisory.New(s.DSN(""), &advisory.Options{TTL: ttl, Sequence: "cached"}), nil, "CACHE 1")
		if query(t, s, "select current_setting('server_version_num')::int >= 150000")[0] == "true" {
			exec1(t, s, "create unlogged sequence unlogged")
			refused(t, advisory.New(s.DSN(""), &advisory.Options{TTL: ttl, Sequence: "unlogged"}), nil, "UNLOGGED")
		}
	})
	t.Run("a sequence made anew", func(t *testing.T) {
		l := advisory.New(s.DSN(""), &advisory.Options{TTL: ttl, Sequence: "anew"})
		var tokens [2]locker.Token
		for i := range tokens {
			h := lock(t, l, "anew")
			tokens[i], _ = h.Token()
			unlock(t, h)
			exec1(t, s, "drop sequence anew; create sequence anew")
		}
		if tokens[0].Epoch == tokens[1].Epoch {
			t.Errorf("%v, then %v", tokens[0], tokens[1])
		}
	})
	t.Run("a quote in the sequence's name", func(t *testing.T) {
		l := advisory.New(s.DSN(""), &advisory.Options{TTL: ttl, Sequence: `it's "odd"`})
		unlock(t, lock(t, l, "quote"))
		h, err := l.TryLock(within(t, time.Minute), "quote", locker.Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		unlock(t, h)
	})
	t.Run("no connection left", func(t *testing.T) {
		small := pgtest.Start(t, "max_connections=4")
		l := open(small.DSN(""))
		unlock(t, lock(t, l, "small")) // the server has to be a TTL old
		var held []locker.Held
		var err error
		for i := 0; err == nil && i < 8; i++ {
			var h locker.Held
			if h, err = l.Lock(within(t, 5*time.Second), strconv.Itoa(i), locker.Exclusive); err == nil {
				held = append(held, h)
			}
		}
		if err == nil || !strings.Contains(err.Error(), "no connection left") {
			t.Errorf("%v", err)
		}
		for _, h := range held {
			unlock(t, h)
		}
	})
	if left := query(t, s, "select pid from pg_locks where locktype = 'advisory'"); len(left) > 0 {
		t.Errorf("%d locks are held", len(left))
	}
}

// TestOtherServers talks to servers that cannot be had here.
func TestOtherServers(t *testing.T) {
	t.Parallel()
	t.Run("too old", func(t *testing.T) {
		f := &fake{version: "13.14 (Debian 13.14-1)"}
		refused(t, open(f.start(t)), errors.ErrUnsupported, "13.14", "14")
	})
	t.Run("one that cannot look after its clients", func(t *testing.T) {
		f := &fake{version: "16.1", refuse: "client_connection_check_interval"}
		unlock(t, lock(t, open(f.start(t)), "other"))
		if !f.asks("idle_session_timeout") {
			t.Error("the other settings are missing")
		}
	})
	t.Run("one with a transaction_timeout", func(t *testing.T) {
		f := &fake{version: "17.0"}
		unlock(t, lock(t, open(f.start(t)), "other"))
		if !f.asks("set_config", "'0'", "'transaction_timeout'") {
			t.Error("its transaction_timeout ends a wait")
		}
	})
}

// TestSilentServer: whoever waits for nothing is told for whom, and not that a context
// has ended that goes on.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, err error, addr string) {
		t.Helper()
		t.Log(err)
		if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
			!errors.Is(err, locker.ErrUnavailable) || !strings.Contains(err.Error(), "no answer") || !strings.Contains(err.Error(), addr) {
			t.Errorf("%v", err)
		}
	}
	t.Run("after the handshake", func(t *testing.T) {
		t.Parallel()
		f := &fake{version: "15.1", silent: "pg_backend_pid"}
		dsn := f.start(t)
		_, err := open(dsn).Lock(context.Background(), "silent", locker.Exclusive)
		check(t, err, strings.TrimPrefix(strings.TrimSuffix(dsn, "/postgres?sslmode=disable"), "postgres://postgres@"))
	})
	t.Run("from the beginning", func(t *testing.T) {
		t.Parallel()
		s := pgtest.Start(t)
		p := lockertest.NewProxy(t, "tcp", s.Addr())
		p.Swallow(lockertest.Both)
		_, err := open(s.TCP(p.Addr())).Lock(context.Background(), "silent", locker.Exclusive)
		check(t, err, p.Addr())
	})
	t.Run("on a connection that was kept", func(t *testing.T) {
		t.Parallel()
		s := pgtest.Start(t)
		p := lockertest.NewProxy(t, "tcp", s.Addr())
		// The TTL is long, so that the connection does not end first.
		l := advisory.New(s.TCP(p.Addr()), &advisory.Options{TTL: 15 * time.Second})
		unlock(t, lock(t, l, "silent"))
		p.Swallow(lockertest.Both)
		_, err := l.TryLock(context.Background(), "silent", locker.Exclusive)
		check(t, err, p.Addr())
	})
}

// TestPooler puts PgBouncer in between. In transaction mode it gave one lock to two
// clients.
func TestPooler(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	for _, mode := range []string{"transaction", "session"} {
		t.Run(mode, func(t *testing.T) {
			dsn := s.DSN(s.Bouncer(t, mode))
			if mode == "transaction" {
				// The control: the stock way through this pooler.
				ctx := within(t, 20*time.Second)
				n := 0
				for range 2 {
					conn, err := pgx.Connect(ctx, dsn+" default_query_exec_mode=simple_protocol")
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close(ctx)
					var got bool
					if err := conn.QueryRow(ctx, "select pg_try_advisory_lock(1)").Scan(&got); err != nil {
						t.Fatal(err)
					}
					if got {
						n++
					}
				}
				if n != 2 {
					t.Errorf("%d clients were given the lock by the control, not 2: the pooler does not pool", n)
				}
			}
			refused(t, open(dsn), errors.ErrUnsupported, "pooler")
		})
	}
}

// TestRoleTimeouts: what an administrator has set for sessions at large must end
// neither a wait nor a lock, and must not bring a token back after a crash.
func TestRoleTimeouts(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, "statement_timeout=300", "lock_timeout=200", "idle_in_transaction_session_timeout=200", "idle_session_timeout=500", "synchronous_commit=off")
	a, b := open(s.DSN("")), open(s.DSN(""))
	h := lock(t, a, "role")
	locked := make(chan error, 1)
	go func() {
		h, err := b.Lock(context.Background(), "role", locker.Exclusive)
		if err == nil {
			err = h.Unlock(context.Background())
		}
		locked <- err
	}()
	select {
	case err := <-locked:
		t.Fatalf("while it is held: %v", err)
	case <-h.Context().Done():
		t.Fatal(context.Cause(h.Context()))
	case <-time.After(ttl + time.Second):
	}
	unlock(t, h)
	if err := <-locked; err != nil {
		t.Fatal(err)
	}
	var last uint64
	for range 3 {
		h := lock(t, open(s.DSN("")), "role")
		if token, _ := h.Token(); token.N <= last {
			t.Errorf("token %d after %d, and a crash", token.N, last)
		} else {
			last = token.N
		}
		s.Restart()
	}
}

// TestFrozenBackend stops the backend of the holder: the server as such is well, and
// does not let anybody in until it goes on.
func TestFrozenBackend(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	h := lock(t, open(s.DSN("")), "frozen")
	pid, err := strconv.Atoi(query(t, s, "select pid from pg_locks where granted and "+ofName, []byte("frozen"))[0])
	if err != nil {
		t.Fatal(err)
	}
	thaw := s.Freeze(pid)
	begin := time.Now()
	select {
	case <-h.Context().Done():
	case <-time.After(time.Minute):
		t.Fatal("the lock is still held")
	}
	t.Logf("Context ended after %v", time.Since(begin))
	if err := h.Unlock(within(t, 100*time.Millisecond)); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Unlock: %v", err)
	}
	thaw()
	unlock(t, lock(t, open(s.DSN("")), "frozen"))
}

// TestNoticed: how soon the server knows that a waiter is gone.
func TestNoticed(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	l := advisory.New(s.DSN(""), nil)
	h := lock(t, l, "noticed")
	ctx, cancel := context.WithCancel(context.Background())
	errs := make(chan error)
	go func() { _, err := l.Lock(ctx, "noticed", locker.Exclusive); errs <- err }()
	waits := func(want bool, limit time.Duration) {
		t.Helper()
		for begin := time.Now(); ; time.Sleep(time.Millisecond) {
			got := len(query(t, s, "select pid from pg_locks where not granted and "+ofName, []byte("noticed"))) > 0
			if got == want {
				return
			}
			if time.Since(begin) > limit {
				t.Fatalf("waits: %v, after %v", got, limit)
			}
		}
	}
	waits(true, time.Minute)
	begin := time.Now()
	cancel()
	<-errs
	took := time.Since(begin)
	waits(false, 2*time.Second) // a small part of the TTL
	t.Logf("a cancelled Lock returned after %v, the server forgot it within %v", took, time.Since(begin))
	unlock(t, h)
}

// TestControl partitions a plain advisory lock, on a server that drops idle sessions:
// the stock client does not know.
func TestControl(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, "idle_session_timeout=2000")
	var mu sync.Mutex
	var all []lockertest.Overlap
	var wg sync.WaitGroup
	for i := range partitions(6) {
		wg.Go(func() {
			time.Sleep(rand.N(time.Second))
			p := lockertest.NewProxy(t, "unix", s.Socket())
			take := func(dsn string) *pgx.Conn {
				conn, err := pgx.Connect(within(t, time.Minute), dsn)
				if err == nil {
					_, err = conn.Exec(within(t, time.Minute), "select pg_advisory_lock($1)", i)
				}
				if err != nil {
					t.Error(err)
				}
				return conn
			}
			o := lockertest.Partition(t, func() { p.Swallow(lockertest.Both) }, func() <-chan struct{} {
				conn := take(s.DSN(filepath.Dir(p.Addr())))
				lost := make(chan struct{})
				var using sync.Mutex // a Conn is not safe for concurrent use
				closed := func() bool {
					using.Lock()
					defer using.Unlock()
					return conn.IsClosed()
				}
				go func() {
					for !closed() {
						time.Sleep(10 * time.Millisecond)
					}
					close(lost)
				}()
				t.Cleanup(func() {
					using.Lock()
					defer using.Unlock()
					conn.Close(within(t, time.Millisecond))
				})
				return lost
			}, func() { take(s.DSN("")) })
			mu.Lock()
			all = append(all, o)
			mu.Unlock()
		})
	}
	wg.Wait()
	if lockertest.Report(t, "plain advisory lock", all) == 0 {
		t.Error("the control has no overlaps: the injection finds nothing")
	}
}

// TestLatency logs figures, with LOCKER_LONG those of docs/distributed.md. It is not
// parallel, so that little else runs.
func TestLatency(t *testing.T) {
	n := 40
	if os.Getenv("LOCKER_LONG") != "" {
		n = 400
	}
	s := pgtest.Start(t)
	ours := func(idle int) func() func() {
		l := advisory.New(s.DSN(""), &advisory.Options{Idle: idle})
		return func() func() {
			h := lock(t, l, "latency")
			return func() { unlock(t, h) }
		}
	}
	plain := func(fresh bool) func() func() {
		var conn *pgx.Conn
		return func() func() {
			ctx := context.Background()
			if conn == nil || fresh {
				var err error
				if conn, err = pgx.Connect(ctx, s.DSN("")); err != nil {
					t.Fatal(err)
				}
				if !fresh {
					t.Cleanup(func() { conn.Close(ctx) })
				}
			}
			conn := conn
			if _, err := conn.Exec(ctx, "select pg_advisory_lock(1)"); err != nil {
				t.Fatal(err)
			}
			return func() {
				if _, err := conn.Exec(ctx, "select pg_advisory_unlock(1)"); err != nil {
					t.Error(err)
				}
				if fresh {
					conn.Close(ctx)
				}
			}
		}
	}
	lockertest.Latency(t, "flockctx, connection kept", n, ours(0))
	lockertest.Latency(t, "plain advisory lock, connection kept", n, plain(false))
	lockertest.Latency(t, "flockctx, new connection", n/2, ours(-1))
	lockertest.Latency(t, "plain advisory lock, new connection", n/2, plain(true))
	lockertest.HandOver(t, "flockctx", n/4, 20*time.Millisecond, ours(0), ours(0))
	lockertest.HandOver(t, "plain advisory lock", n/4, 20*time.Millisecond, plain(false), plain(false))
}

// TestTerminatedAtUnlock terminates backends around the Unlock of their holders. The
// server says that it has ended the session, or has unlocked before: the holder must
// not be left unsure. It is not parallel, since it has one processor for all goroutines.
func TestTerminatedAtUnlock(t *testing.T) {
	s := pgtest.Start(t)
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, s.DSN(""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	// So that the reader has seen nothing yet when Unlock asks.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, dsn := range []string{s.DSN(""), s.TCP(s.Addr())} {
		l := open(dsn)
		lost := 0
		const n = 100
		for i := range n {
			h := lock(t, l, "terminated")
			if _, err := conn.Exec(ctx, "select pg_terminate_backend(pid) from pg_locks where granted and locktype = 'advisory'"); err != nil {
				t.Fatal(err)
			}
			for begin, d := time.Now(), rand.N(3*time.Millisecond); time.Since(begin) < d; {
			}
			if err := h.Unlock(within(t, time.Minute)); errors.Is(err, locker.ErrLost) {
				lost++
			} else if err != nil {
				t.Fatalf("run %d: %v", i, err)
			}
		}
		t.Logf("%d of %d were lost", lost, n)
	}
}

// TestStrangeApplicationName: names of other programs look as ours do and are none.
func TestStrangeApplicationName(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	ctx := within(t, time.Minute)
	conn, err := pgx.Connect(ctx, s.DSN("")+" application_name='flockctx under 99999999999'")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	l := open(s.DSN(""))
	err = locker.Do(ctx, l, "strange too", locker.Exclusive, func(ctx context.Context) error {
		_, err := l.Lock(ctx, "strange too", locker.Exclusive)
		return err
	})
	if !errors.Is(err, locker.ErrDeadlock) {
		t.Error(err)
	}
}
