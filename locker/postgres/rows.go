package postgres

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/internal/leased"
	"github.com/flockctx/flockctx/locker"
)

// rows is the server of the engine: a call of one of the procedures in schema.sql for each
// request. What does not pass is explained.
type rows struct {
	db    database
	limit time.Duration // how long to wait for a connection, and for an answer
}

var _ leased.Circler = rows{}

// waited is how long a wait has lasted when the statement is sent, in microseconds.
type waited time.Time

func (w waited) Value() (driver.Value, error) { return time.Since(time.Time(w)).Microseconds(), nil }

func (r rows) Claim(ctx context.Context, c *leased.Claim) (a leased.Answer, sent lease.Instant, err error) {
	var token, look *int64
	sent, err = r.run(ctx, "call flockctx.claim($1::text, $2::bytea, $3::text, $4::boolean, $5::boolean, $6::bigint, $7::bigint, $8::text::text[], $9::text, $10::integer, $11::text, null, null)",
		[]any{c.ID, []byte(c.Name), c.Owner, c.Shared, c.Try, c.TTL.Milliseconds(), waited(c.Began),
			"{" + strings.Join(c.Under, ",") + "}", c.Host, c.PID, c.Note}, &token, &look)
	if token != nil {
		a.Granted, a.Token = true, uint64(*token)
	}
	if look != nil {
		a.Look = time.Duration(*look) * time.Millisecond
	}
	return a, sent, err
}

func (r rows) Release(ctx context.Context, id, name string) (found bool, sent lease.Instant, err error) {
	sent, err = r.run(ctx, "call flockctx.release($1::text, $2::bytea, null)", []any{id, []byte(name)}, &found)
	return found, sent, err
}

func (r rows) Renew(ctx context.Context, owner string, ttl time.Duration, _ map[string]string) (ids []string, sent lease.Instant, err error) {
	var text string
	sent, err = r.run(ctx, "call flockctx.renew($1::text, $2::bigint, null)", []any{owner, ttl.Milliseconds()}, &text)
	return strings.Fields(text), sent, err
}

func (r rows) Circle(ctx context.Context, id string) (circle bool, err error) {
	_, err = r.run(ctx, "call flockctx.deadlock($1::text, null)", []any{id}, &circle)
	return circle, err
}

func (r rows) Sweep(ctx context.Context) {
	var names int64
	r.run(ctx, "call flockctx.sweep(null)", nil, &names)
}

func (r rows) Holders(ctx context.Context, name string) ([]locker.Holder, error) {
	var text string
	_, err := r.run(ctx, `select coalesce(json_agg(json_build_object('shared', shared, 'waiting', granted is null,
	'since', extract(epoch from coalesce(granted, since)), 'token', token, 'host', host, 'pid', pid, 'note', note)
	order by granted nulls last, since, id), '[]')::text from flockctx.claims where name = $1::bytea and expires > clock_timestamp()`, []any{[]byte(name)}, &text)
	if err != nil {
		return nil, err
	}
	return parseHolders(text)
}

// epoch is that of all tokens: they rise with the server's clock where the counter is
// lost, so there is no other life of the data in which they could be lower.
const epoch = "postgres"

func parseHolders(text string) ([]locker.Holder, error) {
	var rows []struct {
		Shared, Waiting bool
		Since           float64
		Token           *uint64
		Host, Note      string
		PID             int
	}
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		return nil, err
	}
	var all []locker.Holder
	for _, r := range rows {
		h := locker.Holder{Waiting: r.Waiting, Since: time.UnixMicro(int64(r.Since * 1e6)), Host: r.Host, PID: r.PID, Note: r.Note}
		h.Mode = locker.Exclusive
		if r.Shared {
			h.Mode = locker.Shared
		} else if r.Token != nil {
			h.Token = locker.Token{Epoch: epoch, N: *r.Token}
		}
		all = append(all, h)
	}
	return all, nil
}

// Hear implements leased.Server by a connection that listens.
func (r rows) Hear(ctx context.Context, owner string, open func(), notice func(id string)) error {
	conn, err := r.connect(ctx, owner)
	if err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn.Close(cctx)
	}()
	open()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		notice(n.Payload)
	}
}

// connect returns a connection that listens. A pooler is no place for that: notices go
// to whichever client is served by then, and its next owner would have to take them.
func (r rows) connect(ctx context.Context, owner string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	conn, err := r.db.dial(ctx)
	if err != nil {
		return nil, err
	}
	var pid uint32
	err = conn.QueryRow(ctx, "select pg_backend_pid()", pgx.QueryExecModeSimpleProtocol).Scan(&pid)
	if err == nil && pid != conn.PgConn().PID() {
		err = leased.ErrDeaf
	}
	if err == nil {
		_, err = conn.Exec(ctx, `listen "flockctx_`+owner+`"`)
	}
	if err != nil {
		conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}

func (rows) Transient(err error) bool { return transient(err) }
func (rows) Refused(err error) bool   { return refused(err) }

// run sends a statement and scans its one row. The waits for a connection and for the
// answer have a limit of their own, since a connection may be dead, and dead without a
// sign.
func (r rows) run(ctx context.Context, sql string, args []any, dest ...any) (sent lease.Instant, err error) {
	actx, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	conn, err := r.db.acquire(actx)
	if err != nil {
		return 0, explain(err)
	}
	defer conn.release()
	rctx, cancelRow := context.WithTimeout(context.WithoutCancel(ctx), r.limit)
	defer cancelRow()
	sent = lease.Now()
	return sent, explain(conn.row(rctx, sql, args, dest...))
}
