//go:build unix

package advisory_test

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

	"github.com/flockctx/flockctx/internal/pgtest"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/postgres/internal/advisory"
)

// TestMigration: a wait is cut into slices, so that CREATE INDEX CONCURRENTLY, which
// waits for all transactions that are older, ends beside those that wait for the lock
// under which it runs.
func TestMigration(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	exec1(t, s, "create table big as select generate_series(1, 1000) as n")
	h := lock(t, open(s.DSN("")), "migration")
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { unlock(t, lock(t, open(s.DSN("")), "migration")) })
	}
	for len(query(t, s, "select pid from pg_locks where not granted and "+ofName, []byte("migration"))) < 5 {
		time.Sleep(10 * time.Millisecond)
	}
	begin := time.Now()
	exec1(t, s, "create index concurrently big_n on big (n)")
	t.Logf("the index took %v", time.Since(begin))
	if err := h.Context().Err(); err != nil {
		t.Error(context.Cause(h.Context()))
	}
	unlock(t, h)
	wg.Wait()
}

// TestMaxConns: 50 goroutines over 10 names do with 3 connections.
func TestMaxConns(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	l := advisory.New(s.DSN("")+" application_name=counted", &advisory.Options{TTL: ttl, MaxConns: 3})
	stop, most := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				most <- n
				return
			default:
				n = max(n, len(query(t, s, "select pid from pg_stat_activity where application_name = 'counted'")))
			}
		}
	}()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			h, err := l.Lock(within(t, time.Minute), fmt.Sprint("max", i%10), locker.Exclusive)
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(5 * time.Millisecond)
			if err := h.Unlock(within(t, time.Minute)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(stop)
	// One that ends may be seen beside its successor.
	if n := <-most; n > 6 {
		t.Errorf("%d connections", n)
	} else {
		t.Logf("at most %d connections were seen", n)
	}
}

// TestQuiet: after a crash and a start nobody is let in as long as the holder of before,
// whose network is silent, may believe in its lock.
func TestQuiet(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	h := lock(t, open(s.DSN("")), "quiet")
	token, _ := h.Token()
	s.Restart()
	fresh := lock(t, open(s.DSN("")), "quiet") // a process that did not see the server before
	if age := query(t, s, "select clock_timestamp() - pg_postmaster_start_time() > $1::interval", ttl.String()); age[0] != "true" {
		t.Errorf("the first grant came within %v of the start", ttl)
	}
	if later, _ := fresh.Token(); later.N <= token.N {
		t.Errorf("%v after %v", later, token)
	}
	unlock(t, fresh)
}

// TestPromotion: tokens rise over the promotion of a replica that lacks the last ones,
// and a Locker that was there before waits for a TTL.
func TestPromotion(t *testing.T) {
	t.Parallel()
	a := pgtest.Start(t)
	b := a.Standby(t)
	dsn := fmt.Sprintf("host=%s,%s port=%d,%d user=postgres dbname=postgres target_session_attrs=read-write", a.Dir(), b.Dir(), a.Port(), b.Port())
	l := open(dsn)
	unlock(t, lock(t, l, "promotion"))
	for len(query(t, a, "select 1 from pg_stat_replication where replay_lsn >= pg_current_wal_flush_lsn()")) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	b.Kill()
	for range 40 { // more than one record of the sequence covers
		unlock(t, lock(t, l, "promotion"))
	}
	h := lock(t, l, "promotion")
	token, _ := h.Token()
	a.Kill()
	b.Run()
	b.Promote()
	begin := time.Now()
	h = lock(t, l, "promotion")
	if took := time.Since(begin); took < ttl/2 {
		t.Errorf("the first grant came %v after the promotion", took)
	}
	if later, _ := h.Token(); later.N <= token.N || later.Epoch != token.Epoch {
		t.Errorf("%v after %v", later, token)
	}
	unlock(t, h)
}

// TestTokenIsOnDisk: the record of a sequence that covers a token may be that of
// another session, which has not committed.
func TestTokenIsOnDisk(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, "wal_writer_delay=10s")
	l := open(s.DSN(""))
	unlock(t, lock(t, l, "disk"))
	ctx := within(t, time.Minute)
	conn, err := pgx.Connect(ctx, s.DSN(""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	// 33 values need a new record.
	if _, err := conn.Exec(ctx, "begin; select count(nextval('flockctx_token')) from generate_series(1, 33)"); err != nil {
		t.Fatal(err)
	}
	h := lock(t, l, "disk")
	token, _ := h.Token()
	s.Restart()
	h = lock(t, open(s.DSN("")), "disk")
	if later, _ := h.Token(); later.N <= token.N {
		t.Errorf("%v after %v, and a crash", later, token)
	}
	unlock(t, h)
}

func TestClose(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	l := open(s.DSN(""))
	unlock(t, lock(t, l, "other")) // leaves an idle connection
	h := lock(t, l, "close")
	errs := make(chan error)
	for range 2 {
		go func() {
			_, err := l.Lock(within(t, time.Minute), "close", locker.Exclusive)
			errs <- err
		}()
	}
	for advisory.InLine(l, "close") < 1 {
		time.Sleep(time.Millisecond)
	}
	for range 2 {
		if err := l.(io.Closer).Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-errs; !errors.Is(err, fs.ErrClosed) {
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
	for limit := time.Now().Add(time.Minute); len(query(t, s, "select pid from pg_stat_activity where application_name like 'flockctx%'")) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("connections are left")
		}
	}
}

// TestNoWALFunctions: managed servers may refuse what tells of the timeline and of what
// is on disk.
func TestNoWALFunctions(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	exec1(t, s, "create role app login; create sequence flockctx_token; grant usage on sequence flockctx_token to app; revoke execute on function pg_control_system(), pg_walfile_name(pg_lsn), pg_current_wal_flush_lsn() from public")
	l := open(strings.Replace(s.DSN(""), "user=postgres", "user=app", 1))
	var last locker.Token
	for i := range 2 {
		h := lock(t, l, "managed")
		if token, ok := h.Token(); !ok || token.N <= last.N || i > 0 && token.Epoch != last.Epoch {
			t.Errorf("%v after %v", token, last)
		} else {
			last = token
		}
		s.Restart()
	}
}
