package postgres

import (
	"time"

	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/postgres/internal/advisory"
)

// AdvisoryOptions says how to lock by advisory locks. A nil *AdvisoryOptions and the zero
// value are the defaults.
type AdvisoryOptions struct {
	// TTL is how long the server keeps a lock without hearing from its holder.
	// Zero means 15 s; it is at least 1 s. A holder whose process or connection
	// ends frees its lock at once, whatever the TTL.
	TTL time.Duration

	// Sequence names the sequence that the fencing tokens come from, maybe with
	// its schema and a dot. Empty means "flockctx_token". It is created if it is
	// missing, which needs the right to create in that schema; otherwise create
	// it with CREATE SEQUENCE and grant USAGE on it.
	Sequence string

	// Idle is how many connections at most stay open for the next Lock, each for
	// half a TTL after an Unlock. Zero means 2; a negative number none.
	Idle int

	// MaxConns is how many connections at most are open: one for each lock that is
	// held, and one for each name that is waited for. A Lock that would need another
	// one waits for it. Zero means no limit.
	MaxConns int
}

// Advisory returns a Locker on the advisory locks of the database that dsn leads to, a
// URL or the key=value form of libpq. It does no I/O; what is wrong with dsn or opts is
// reported by Lock. It is an [io.Closer]: Close ends the waits and the idle connections.
//
// Each lock has a connection of its own, straight to the primary: a pooler that shares
// connections would give one lock to two clients, and is refused. The server frees a
// lock as soon as it sees the connection end, and after a TTL in which the holder was
// silent. The holder's [locker.Held] context ends when the connection does, or when the
// server has not answered for 90 % of the TTL. Where the server or something in between
// ends the connection, the next holder may come before the news: by milliseconds, and up
// to 90 % of the TTL where the holder's network is silent at that moment. So for a TTL
// after the server has started, or has become another one under this Locker, it
// grants nothing; docs/postgres.md says where two may still hold a name, and for how long.
//
// The goroutines that wait for one name do so with one connection, first come, first
// served. A wait is cut into queries of a second, so that vacuum and CREATE INDEX
// CONCURRENTLY go on, and processes that wait for each other's locks for longer than
// that are served in no order.
//
// A name's lock is [Key] in the database of the connection. Programs that share locks
// share the database, the sequence and the TTL.
//
// A Lock that is called under another one, with the context of its Held or one from
// locker.Do, and in the end waits for it, fails with [locker.ErrDeadlock] after about a
// second. A lock that one Locker takes under another Locker's is not followed, even in
// one database: use one Locker in a process.
func Advisory(dsn string, opts *AdvisoryOptions) locker.Locker {
	if opts == nil {
		opts = &AdvisoryOptions{}
	}
	return advisory.New(dsn, (*advisory.Options)(opts))
}
