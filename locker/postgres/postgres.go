// Package postgres is a [locker.Locker] on PostgreSQL 14 or later: exclusive and
// shared locks by name for any number of machines, first come, first served, with a
// fencing token.
//
// [New] and [NewSQL] keep the locks as rows with a lease, over the pool that the program
// has: through poolers in transaction mode, on managed servers, with however few
// connections. The tables are made once, by [Schema]. A lock survives a reset
// connection, a restart of the server, and a failover that keeps the data. A crashed
// holder's lock is free after its TTL.
//
// Each process renews what it holds three times per TTL. A holder stops, its
// [locker.Held] context ends, when the renewals have not been answered for 90 % of the
// TTL, counted from when they were sent; the server lets the next one in after the whole
// TTL, by its own clock. So two holders never overlap as long as no clock runs 10 % fast
// or slow, the server's clock is not set forward, and no commit is undone: by fsync =
// off, or by the promotion of a replica that is behind.
//
// [Advisory] is another engine, on the server's advisory locks: a crashed holder's lock is
// free in milliseconds, and each lock takes one of the server's connections. [LockTx] is
// a lock for the length of a transaction. docs/postgres.md compares them, and says what
// is in the server, and how to free a lock by hand.
package postgres

import (
	"cmp"
	"database/sql"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/flockctx/flockctx/internal/leased"
	"github.com/flockctx/flockctx/locker"
)

// Options says how to lock by rows. A nil *Options and the zero value are the defaults.
type Options struct {
	// TTL is how long the server keeps a lock without hearing from its holder.
	// Zero means 15 s; it is at least 1 s. A shorter one frees a crashed holder's
	// lock sooner, a longer one keeps a lock through a longer outage. Programs that
	// share locks may differ in it.
	TTL time.Duration
}

// New returns a Locker that keeps its locks as rows in the database of pool, which the
// caller closes when no lock is held or waited for any more. It does no I/O; what is
// wrong with opts is reported by Lock. [Schema] must have been run in the database.
//
// A call takes a connection of the pool for the length of a statement: to lock, to
// unlock, and three times per TTL for all that is held. While somebody waits, and for a
// TTL after that, the Locker has one more connection of its own on which it hears of
// releases; where it gets none, or only one to a pooler, waiters look by themselves, at
// first every few milliseconds, then less and less often up to every third of the TTL.
//
// The Locker is a [locker.Inspector] and an [io.Closer]. Close ends that connection.
func New(pool *pgxpool.Pool, opts *Options) locker.Locker {
	if pool == nil {
		return newEngine(nil, opts)
	}
	return newEngine(pgxDatabase{pool}, opts)
}

// NewSQL is [New] for database/sql, with any driver for PostgreSQL. With one that is not
// pgx, waiters always look by themselves.
func NewSQL(db *sql.DB, opts *Options) locker.Locker {
	if db == nil {
		return newEngine(nil, opts)
	}
	return newEngine(sqlDatabase{db}, opts)
}

func newEngine(db database, opts *Options) *leased.Engine {
	o := leased.Options{Name: "postgres"}
	if opts != nil {
		o.TTL = opts.TTL
	}
	if db == nil {
		o.Invalid = errors.New("no database")
	}
	return leased.New(rows{db, max(cmp.Or(o.TTL, leased.DefaultTTL)/3, 2*time.Second)}, o)
}
