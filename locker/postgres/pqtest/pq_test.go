//go:build unix

// Package pqtest runs the conformance suite over another driver than pgx. It is a module
// of its own, so that those who lock do not depend on that driver.
package pqtest

import (
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/flockctx/flockctx/internal/pgtest"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/lockertest"
	"github.com/flockctx/flockctx/locker/postgres"
)

const ttl = 5 * time.Second

func TestMain(m *testing.M) {
	lockertest.Main(m, func(dsn string) (locker.Locker, error) {
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			return nil, err
		}
		return postgres.NewSQL(db, &postgres.Options{TTL: ttl}), nil
	})
}

func dsn(s *pgtest.Server, dir string) string { return s.DSN(dir) + " sslmode=disable" }

func open(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(10)
	t.Cleanup(func() { db.Close() })
	return db
}

func query(t testing.TB, s *pgtest.Server, query string, args ...any) (all []string) {
	t.Helper()
	rows, err := open(t, dsn(s, "")).QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestConformance leaves out what needs to see the goroutines of a process that wait.
func TestConformance(t *testing.T) {
	s := pgtest.Start(t)
	if _, err := open(t, dsn(s, "")).ExecContext(t.Context(), postgres.Schema()); err != nil {
		t.Fatal(err)
	}
	l := func(t testing.TB, dir string) locker.Locker {
		return postgres.NewSQL(open(t, dsn(s, dir)), &postgres.Options{TTL: ttl})
	}
	lockertest.Run(t, func(t testing.TB) locker.Locker { return l(t, "") }, lockertest.Faults{
		Spec: dsn(s, ""),
		Residue: func(t testing.TB) []string {
			return query(t, s, "select name || ' ' || id from flockctx.queue where expires_in > '0'")
		},
		Break: map[string]func(testing.TB, string){
			"claim deleted": func(t testing.TB, name string) {
				if n := query(t, s, "with gone as (delete from flockctx.claims where name = $1 and granted is not null returning 1) select count(*) from gone", []byte(name)); len(n) != 1 || n[0] != "1" {
					t.Fatalf("deleted: %v", n)
				}
			},
		},
		Network: func(t testing.TB) (locker.Locker, *lockertest.Proxy) {
			p := lockertest.NewProxy(t, "unix", s.Socket())
			return l(t, filepath.Dir(p.Addr())), p
		},
		Restart: func(testing.TB) { s.Restart() },
	})
}

// TestLockTx holds a name as long as the transaction.
func TestLockTx(t *testing.T) {
	s := pgtest.Start(t)
	db := open(t, dsn(s, ""))
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := postgres.LockSQLTx(t.Context(), tx, "a /* name */"); err != nil {
		t.Fatal(err)
	}
	free := func() bool {
		return query(t, s, "select pg_try_advisory_xact_lock($1)", postgres.Key("a /* name */"))[0] == "true"
	}
	if free() {
		t.Error("not held")
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if !free() {
		t.Error("still held")
	}
}
