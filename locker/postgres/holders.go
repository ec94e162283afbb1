package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/locker"
)

// Holders implements locker.Inspector. Of the goroutines of one Locker that wait for
// one name, only the first is known to the server; those that wait under another lock
// all are.
func (e *engine) Holders(ctx context.Context, name string) ([]locker.Holder, error) {
	fail := func(err error) ([]locker.Holder, error) {
		return nil, fmt.Errorf("postgres: holders of %.64q: %w", name, err)
	}
	if e.invalid != nil {
		return fail(e.invalid)
	}
	limit, cancel := lease.Reach(ctx)
	defer cancel()
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		var text string
		_, err := e.run(limit, `select coalesce(json_agg(json_build_object('shared', shared, 'waiting', granted is null,
	'since', extract(epoch from coalesce(granted, since)), 'token', token, 'host', host, 'pid', pid, 'note', note)
	order by granted nulls last, since, id), '[]')::text from flockctx.claims where name = $1::bytea and expires > clock_timestamp()`, []any{[]byte(name)}, &text)
		switch {
		case err == nil:
			return parseHolders(text)
		case !transient(err):
			return fail(explain(err))
		}
		select {
		case <-time.After(pause):
		case <-limit.Done():
			if ctx.Err() != nil {
				return fail(fmt.Errorf("%w (%w)", ctx.Err(), lease.Unavailable(err)))
			}
			return fail(lease.Unavailable(err))
		}
	}
}

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
