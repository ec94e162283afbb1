package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/flockctx/flockctx/internal/leased"
)

// A database is where connections come from.
type database interface {
	acquire(ctx context.Context) (connection, error)

	// dial returns a new connection for notices, or leased.ErrDeaf.
	dial(ctx context.Context) (*pgx.Conn, error)
}

// A connection runs one statement at a time.
type connection interface {
	row(ctx context.Context, sql string, args []any, dest ...any) error
	release()
}

type pgxDatabase struct{ pool *pgxpool.Pool }
type pgxConnection struct{ *pgxpool.Conn }

func (d pgxDatabase) acquire(ctx context.Context) (connection, error) {
	conn, err := d.pool.Acquire(ctx)
	return pgxConnection{conn}, err
}

// dial does not take a connection of the pool, which may be its only one.
func (d pgxDatabase) dial(ctx context.Context) (*pgx.Conn, error) {
	config := d.pool.Config()
	if config.BeforeConnect != nil {
		if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
			return nil, err
		}
	}
	config.ConnConfig.OnNotification = nil // the program's
	return pgx.ConnectConfig(ctx, config.ConnConfig)
}

func (c pgxConnection) row(ctx context.Context, sql string, args []any, dest ...any) error {
	return c.QueryRow(ctx, sql, args...).Scan(dest...)
}

func (c pgxConnection) release() { c.Release() }

type sqlDatabase struct{ db *sql.DB }
type sqlConnection struct{ *sql.Conn }

func (d sqlDatabase) acquire(ctx context.Context) (connection, error) {
	conn, err := d.db.Conn(ctx)
	return sqlConnection{conn}, err
}

func (d sqlDatabase) dial(ctx context.Context) (*pgx.Conn, error) {
	conn, err := d.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var config *pgx.ConnConfig
	err = conn.Raw(func(c any) error {
		if c, ok := c.(interface{ Conn() *pgx.Conn }); ok {
			config = c.Conn().Config()
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case config == nil:
		return nil, leased.ErrDeaf
	}
	config.OnNotification = nil // that connection's
	return pgx.ConnectConfig(ctx, config)
}

func (c sqlConnection) row(ctx context.Context, sql string, args []any, dest ...any) error {
	return c.QueryRowContext(ctx, sql, args...).Scan(dest...)
}

func (c sqlConnection) release() { c.Close() }

// state returns the SQLSTATE of a server's error, or "". Every driver has it so.
func state(err error) string {
	var e interface {
		error
		SQLState() string
	}
	if errors.As(err, &e) {
		return e.SQLState()
	}
	return ""
}

// transient reports whether err may pass: the server cannot be reached, or cannot serve
// now. A server that is read only is one that was, or will be, the primary.
func transient(err error) bool {
	s := state(err)
	if s == "" {
		return true // the network's, or the pool's
	}
	if slices.Contains([]string{"08", "40", "53"}, s[:2]) {
		return true
	}
	// Read only; lock and statement timeouts; shutting down, crashed, starting up.
	return slices.Contains([]string{"25006", "55P03", "57014", "57P01", "57P02", "57P03", "57P05"}, s)
}

// refused reports whether a statement that failed with err has certainly done nothing.
func refused(err error) bool {
	if errors.Is(err, driver.ErrBadConn) || pgconn.SafeToRetry(err) {
		return true
	}
	s := state(err)
	return s != "" && !strings.HasPrefix(s, "08") && !strings.HasPrefix(s, "57P")
}

// explain adds to an error that does not pass what to do about it.
func explain(err error) error {
	switch s := state(err); {
	case s == "3F000", s == "42883", s == "42P01":
		return fmt.Errorf("the database lacks the tables and procedures of postgres.Schema, of this version: %w", err)
	case s == "42501":
		return fmt.Errorf("the user needs USAGE on the schema flockctx, and SELECT, INSERT, UPDATE and DELETE on its tables: %w", err)
	case strings.HasPrefix(s, "28"):
		return fmt.Errorf("the server refuses the credentials: %w", err)
	}
	return err
}
