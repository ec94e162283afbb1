package postgres

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/postgres/internal/advisory"
)

// Key returns the advisory lock of a name: the first 8 bytes of the name's SHA-256. Two
// names that share those, which among a million names has a chance of 1 in 37 million,
// share a lock.
func Key(name string) int64 { return advisory.Key(name) }

// LockTx locks name exclusively until tx ends. The lock lives and dies with the
// transaction, so it cannot be lost while the transaction can still commit, and needs no
// fencing token for what the transaction does. It is the advisory lock [Key], whose
// other holders are those of [Advisory] and of LockTx; [New] has locks of its own.
//
// It waits until ctx is done or the session's lock_timeout has passed. After an error
// nothing is held, and the transaction must be rolled back. The server finds deadlocks.
// Like every wait in a transaction it holds back vacuum, and CREATE INDEX CONCURRENTLY
// waits for it; so don't run that under a LockTx.
func LockTx(ctx context.Context, tx pgx.Tx, name string) error {
	return lockTx(name, func(query string) error {
		_, err := tx.Exec(ctx, query)
		return err
	})
}

// LockSQLTx is [LockTx] for database/sql.
func LockSQLTx(ctx context.Context, tx *sql.Tx, name string) error {
	return lockTx(name, func(query string) error {
		_, err := tx.ExecContext(ctx, query)
		return err
	})
}

func lockTx(name string, exec func(query string) error) error {
	err := locker.CheckName(name)
	if err == nil {
		// Operators see the name in pg_stat_activity.
		err = exec(fmt.Sprintf("select pg_advisory_xact_lock(%d) /* flockctx %s */", Key(name), advisory.Comment(name)))
	}
	if err != nil {
		return fmt.Errorf("postgres: lock %.64q: %w", name, err)
	}
	return nil
}
