//go:build unix

package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/lockertest"
	"github.com/flockctx/flockctx/locker/postgres"
)

// eventually waits until ok returns true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("not in a minute: " + what)
		}
	}
}

// wait starts a Lock, and returns when the server knows of it. The lock is given back
// as soon as it is granted.
func wait(t testing.TB, l locker.Locker, name string) (done <-chan error) {
	t.Helper()
	errs := make(chan error, 1)
	before := postgres.Waiting(l, name)
	ctx := within(t, time.Minute)
	go func() {
		h, err := l.Lock(ctx, name, locker.Exclusive)
		if err == nil {
			err = h.Unlock(ctx)
		}
		errs <- err
	}()
	eventually(t, "a Lock that waits", func() bool { return postgres.Waiting(l, name) > before })
	return errs
}

// TestMigration is what a session that waits for a lock would deadlock: CREATE INDEX
// CONCURRENTLY waits for all transactions that are older.
func TestMigration(t *testing.T) {
	t.Parallel()
	s := start(t)
	exec(t, s, "create table big as select generate_series(1, 1000) as n")
	h := lock(t, open(t, s.DSN("")), "migration")
	var waits []<-chan error
	for range 5 {
		waits = append(waits, wait(t, open(t, s.DSN("")), "migration"))
	}
	exec(t, s, "create index concurrently big_n on big (n)")
	if held := query(t, s, "select query from pg_stat_activity where backend_xmin is not null and pid <> pg_backend_pid() and backend_type = 'client backend'"); len(held) > 0 {
		t.Errorf("vacuum is held back by %q", held)
	}
	unlock(t, h)
	for _, w := range waits {
		if err := <-w; err != nil {
			t.Error(err)
		}
	}
}

// TestFewConnections: 500 waiters of 4 Lockers on a server that has 20 connections.
func TestFewConnections(t *testing.T) {
	t.Parallel()
	for name, through := range map[string]func(*testing.T) string{
		"direct": func(t *testing.T) string {
			return start(t, "max_connections=20").DSN("") + " pool_max_conns=3"
		},
		"pooler": func(t *testing.T) string {
			s := start(t, "max_connections=20")
			return s.DSN(s.Bouncer(t, "transaction", "default_pool_size = 10", "max_client_conn = 1000")) + " pool_max_conns=20 default_query_exec_mode=exec"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := through(t)
			var lockers []locker.Locker
			for range 4 {
				lockers = append(lockers, open(t, dsn))
			}
			h := lock(t, lockers[0], "few")
			const n = 500
			inside, done := 0, 0
			var wg sync.WaitGroup
			ctx := within(t, 2*time.Minute)
			for i := range n {
				wg.Go(func() {
					h, err := lockers[i%len(lockers)].Lock(ctx, "few", locker.Exclusive)
					if err != nil {
						t.Error(err)
						return
					}
					if inside++; inside != 1 {
						t.Error("two holders")
					}
					done++
					inside--
					if err := h.Unlock(ctx); err != nil {
						t.Error(err)
					}
				})
			}
			eventually(t, "500 wait", func() bool {
				all := 0
				for _, l := range lockers {
					all += postgres.Waiting(l, "few")
				}
				return all == n
			})
			begin := time.Now()
			unlock(t, h)
			wg.Wait()
			if done != n {
				t.Errorf("%d of %d", done, n)
			}
			t.Logf("%d served in %v", done, time.Since(begin).Round(time.Millisecond))
		})
	}
}

// TestRights: a user who may not create anything, with and without what Schema's
// documentation grants.
func TestRights(t *testing.T) {
	t.Parallel()
	s := start(t)
	exec(t, s, "create role app login; revoke create on schema public from public; revoke all on database postgres from public; grant connect on database postgres to app")
	l := open(t, strings.Replace(s.DSN(""), "user=postgres", "user=app", 1))
	if _, err := l.Lock(within(t, time.Minute), "rights", locker.Exclusive); err == nil || !strings.Contains(err.Error(), "USAGE") || errors.Is(err, locker.ErrUnavailable) {
		t.Errorf("without a right: %v", err)
	}
	exec(t, s, "grant usage on schema flockctx to app; grant select, insert, update, delete on all tables in schema flockctx to app")
	h := lock(t, l, "rights")
	w := wait(t, l, "rights")
	unlock(t, h)
	if err := <-w; err != nil {
		t.Error(err)
	}
}

func TestNoSchema(t *testing.T) {
	t.Parallel()
	s := start(t)
	exec(t, s, "drop schema flockctx cascade")
	for _, prefix := range []string{"", "sql "} {
		if _, err := open(t, prefix+s.DSN("")).TryLock(within(t, time.Minute), "none", locker.Exclusive); err == nil || !strings.Contains(err.Error(), "postgres.Schema") {
			t.Errorf("without the tables: %v", err)
		}
	}
	// Several that start at once.
	var wg sync.WaitGroup
	for range 8 {
		conn := connect(t, s.DSN(""))
		wg.Go(func() {
			if _, err := conn.Exec(within(t, time.Minute), postgres.Schema()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	unlock(t, lock(t, open(t, s.DSN("")), "none"))
}

// TestSettings: what a user has set for sessions at large must not let two in, nor fail.
func TestSettings(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, settings := range []string{
		"default_transaction_isolation=serializable",
		"default_transaction_isolation='repeatable read' synchronous_commit=off",
		"default_transaction_read_only=on",
		"default_query_exec_mode=simple_protocol",
		"statement_timeout=500 lock_timeout=100 idle_in_transaction_session_timeout=100 idle_session_timeout=300",
	} {
		for _, prefix := range []string{"", "sql "} {
			t.Run(prefix+settings, func(t *testing.T) {
				t.Parallel()
				lockers := []locker.Locker{open(t, prefix+s.DSN("")+" "+settings), open(t, prefix+s.DSN("")+" "+settings)}
				inside, done := 0, 0
				var wg sync.WaitGroup
				for i := range 8 {
					wg.Go(func() {
						for range 5 {
							h, err := lockers[i%2].Lock(within(t, time.Minute), t.Name(), locker.Exclusive)
							if err != nil {
								t.Error(err)
								return
							}
							if inside++; inside != 1 {
								t.Error("two holders")
							}
							done++
							inside--
							if err := h.Unlock(within(t, time.Minute)); err != nil {
								t.Error(err)
							}
						}
					})
				}
				wg.Wait()
				if done != 40 {
					t.Errorf("%d of 40", done)
				}
				// A lock that is kept is renewed.
				h := lock(t, lockers[0], t.Name())
				select {
				case <-h.Context().Done():
					t.Error(context.Cause(h.Context()))
				case <-time.After(ttl + ttl/2):
				}
				unlock(t, h)
			})
		}
	}
}

// TestLostAnswers: what was committed and not answered is asked for again, and is
// neither lost nor granted twice.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := lockertest.NewProxy(t, "unix", s.Socket())
	config, err := pgxpool.ParseConfig(s.DSN(dirOf(p)))
	if err != nil {
		t.Fatal(err)
	}
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // it would have no answer
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec                            // and so would a new statement's description
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	l := postgres.New(pool, &postgres.Options{TTL: time.Minute})
	unlock(t, lock(t, l, "answers")) // so that there is a connection
	count := func(n string) func() bool {
		return func() bool { return query(t, s, "select count(*) from flockctx.claims where name = 'answers'")[0] == n }
	}

	p.Swallow(lockertest.ToClient)
	type grant struct {
		h   locker.Held
		err error
	}
	granted := make(chan grant)
	go func() {
		h, err := l.Lock(within(t, time.Minute), "answers", locker.Exclusive)
		granted <- grant{h, err}
	}()
	eventually(t, "a grant on the server", count("1"))
	token := query(t, s, "select token from flockctx.claims where name = 'answers'")[0]
	p.Reset()
	p.Heal()
	g := <-granted
	if g.err != nil {
		t.Fatal(g.err)
	}
	if got, _ := g.h.Token(); fmt.Sprint(got.N) != token || !count("1")() {
		t.Errorf("token %v, and on the server %s", got, token)
	}

	p.Swallow(lockertest.ToClient)
	errs := make(chan error)
	go func() { errs <- g.h.Unlock(within(t, time.Minute)) }()
	eventually(t, "a release on the server", count("0"))
	p.Reset()
	p.Heal()
	if err := <-errs; err != nil {
		t.Errorf("Unlock: %v", err)
	}
}

// TestByHand frees a lock as docs/postgres.md says: nobody gets in before the holder
// knows.
func TestByHand(t *testing.T) {
	t.Parallel()
	s := start(t)
	h := lock(t, open(t, s.DSN("")), "by hand")
	w := wait(t, open(t, s.DSN("")), "by hand")
	exec(t, s, "update flockctx.claims set owner = null where name = 'by hand' and granted is not null")
	if err := <-w; err != nil {
		t.Fatal(err)
	}
	if err := h.Context().Err(); err == nil {
		t.Error("another one was let in before the holder was told")
	}
	if err := h.Unlock(within(t, time.Minute)); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Unlock: %v", err)
	}
}

func TestHolders(t *testing.T) {
	t.Parallel()
	s := start(t)
	l, other := open(t, s.DSN("")), open(t, "sql "+s.DSN(""))
	ctx := locker.WithNote(within(t, time.Minute), "it's a \"note\"")
	h, err := l.Lock(ctx, "holders", locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	w := wait(t, other, "holders")
	for _, l := range []locker.Locker{l, other} {
		all, err := l.(locker.Inspector).Holders(within(t, time.Minute), "holders")
		if err != nil || len(all) != 2 {
			t.Fatalf("%v, %v", all, err)
		}
		token, _ := h.Token()
		if a := all[0]; a.Waiting || a.Mode != locker.Exclusive || a.Note != "it's a \"note\"" || a.Token != token || a.PID == 0 || a.Host == "" || time.Since(a.Since).Abs() > time.Minute {
			t.Errorf("the holder: %+v", a)
		}
		if b := all[1]; !b.Waiting || b.Note != "" || b.Token != (locker.Token{}) {
			t.Errorf("the waiter: %+v", b)
		}
	}
	unlock(t, h)
	if err := <-w; err != nil {
		t.Error(err)
	}
	if all, err := l.(locker.Inspector).Holders(within(t, time.Minute), "holders"); err != nil || len(all) != 0 {
		t.Errorf("of a free lock: %v, %v", all, err)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := open(t, s.DSN(""))
	h := lock(t, l, "close")
	first := wait(t, l, "close")
	second := wait(t, l, "close") // in line behind it
	for range 2 {
		if err := l.(io.Closer).Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range []<-chan error{first, second} {
		if err := <-w; !errors.Is(err, fs.ErrClosed) {
			t.Errorf("a wait: %v", err)
		}
	}
	if _, err := l.TryLock(within(t, time.Minute), "other", locker.Exclusive); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("TryLock: %v", err)
	}
	select {
	case <-h.Context().Done():
		t.Errorf("the lock: %v", context.Cause(h.Context()))
	case <-time.After(ttl + ttl/2):
	}
	unlock(t, h)
	eventually(t, "the connection for notices ends", func() bool {
		return len(query(t, s, "select pid from pg_stat_activity where query like 'listen%'")) == 0
	})
}

// TestUnavailable: a server that is away is waited for, and one that stays away is named.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := open(t, s.DSN(""))
	h := lock(t, l, "away")
	w := wait(t, l, "away")
	s.Kill()
	begin := time.Now()
	_, err := l.Lock(within(t, 300*time.Millisecond), "other", locker.Exclusive)
	if !errors.Is(err, locker.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a deadline, after %v: %v", time.Since(begin), err)
	}
	_, err = l.TryLock(context.Background(), "other", locker.Exclusive)
	if !errors.Is(err, locker.ErrUnavailable) || errors.Is(err, flockctx.ErrLocked) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without one, after %v: %v", time.Since(begin), err)
	}
	if err := h.Unlock(within(t, 100*time.Millisecond)); !errors.Is(err, locker.ErrLost) {
		t.Errorf("a lock that could not be renewed: %v", err)
	}
	s.Run()
	if err := <-w; err != nil {
		t.Errorf("a wait through the outage: %v", err)
	}
}

// TestSweep: what nobody wants any more goes, and tokens rise over that.
func TestSweep(t *testing.T) {
	t.Parallel()
	s := start(t)
	h := lock(t, open(t, s.DSN("")), "old")
	token, _ := h.Token()
	unlock(t, h)
	exec(t, s, "update flockctx.locks set token = token - 2 * 86400 * 1000000::bigint")
	exec(t, s, "insert into flockctx.claims select 'x', 'crashed', 'o', false, now(), now(), now() - interval '2 hours', 1, '{}', '', 0, ''")
	used := lock(t, open(t, s.DSN("")), "used") // the first renewal of a Locker
	eventually(t, "the old ones are gone", func() bool {
		return query(t, s, "select count(*) from flockctx.locks")[0] == "1" && query(t, s, "select count(*) from flockctx.claims")[0] == "1"
	})
	unlock(t, used)
	h = lock(t, open(t, s.DSN("")), "old")
	if again, _ := h.Token(); again.N <= token.N {
		t.Errorf("%v after %v", again, token)
	}
	unlock(t, h)
}

// TestStorm: several ask at the same moment for a lock that is free.
func TestStorm(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, settings := range []string{"", " default_transaction_isolation='repeatable read'"} {
		t.Run(settings, func(t *testing.T) {
			t.Parallel()
			var lockers []locker.Locker
			for range 4 {
				l := open(t, s.DSN("")+settings)
				unlock(t, lock(t, l, t.Name())) // so that it has a connection
				lockers = append(lockers, l)
			}
			granted := 0
			for range 100 {
				held := make([]locker.Held, len(lockers))
				var ready, wg sync.WaitGroup
				ready.Add(len(lockers))
				for i, l := range lockers {
					wg.Go(func() {
						ready.Done()
						ready.Wait()
						h, err := l.TryLock(within(t, time.Minute), t.Name(), locker.Mode(i%2))
						if err == nil {
							held[i] = h
						} else if !errors.Is(err, flockctx.ErrLocked) {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				var n [2]int
				for i, h := range held {
					if h != nil {
						n[i%2]++
						granted++
						unlock(t, h)
					}
				}
				if e, s := n[locker.Exclusive], n[locker.Shared]; e > 1 || e > 0 && s > 0 {
					t.Fatalf("%d exclusive and %d shared locks at once", e, s)
				}
			}
			if granted < 100 {
				t.Errorf("%d granted in 100 rounds: somebody should get it", granted)
			}
		})
	}
}
