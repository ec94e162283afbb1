package advisory

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/flockctx/flockctx/internal/lineage"
	"github.com/flockctx/flockctx/locker"
)

// The server looks for deadlocks between sessions, and each lock here has a session of
// its own: it cannot know that the holder of one waits for another. So a session that
// locks under a lock says so in its application_name, and whoever waits under a lock
// follows the waits from session to session, and from a lock to what is locked under
// it, until it comes back to itself or to an end.

// deadlockAfter is the server's own deadlock_timeout: looking costs something, and most
// waits are shorter.
const deadlockAfter = time.Second

const underPrefix = "flockctx under "

// findCycle asks whether session %[1]d waits, in the end, for itself.
const findCycle = `with recursive
under(outer_pid, pid) as materialized (
	select substring(application_name from '[0-9]+$')::int, pid from pg_stat_activity where application_name ~ '^` + underPrefix + `[0-9]{1,9}$'
),
reach(pid) as (
	select unnest(pg_blocking_pids(%[1]d))
	union
	select n.pid from reach r cross join lateral (
		select unnest(pg_blocking_pids(r.pid)) as pid
		union all
		select u.pid from under u where u.outer_pid = r.pid
	) n
)
select exists (select from reach where pid = %[1]d)`

// Outer implements lineage.Lock.
func (h *held) Outer() lineage.Lock { return h.parent }

// outer returns the lock of e under which a lock with the given parent is, or nil. One
// of another engine may be on another server, whose process numbers mean nothing here;
// but one of e may lie beyond it.
func (e *engine) outer(parent lineage.Lock) *held {
	for l := parent; l != nil; l = l.Outer() {
		if h, ok := l.(*held); ok && h.engine == e && h.Err() == nil {
			return h
		}
	}
	return nil
}

// descent returns the query that puts down the session of the lock under which h's is.
func (h *held) descent() string {
	var under uint32
	if h.outer != nil {
		under = h.outer.s.pid
	}
	if under == h.s.under {
		return ""
	}
	h.s.under = under
	if under == 0 {
		return "reset application_name; "
	}
	return fmt.Sprintf("set application_name = '%s%d'; ", underPrefix, under)
}

// findDeadlock cancels the wait of h with ErrDeadlock if it waits for itself. It asks
// on the session of the lock further out, which has nothing else to do than to ping.
// Of several that wait in a circle each looks for itself; the jitter makes it likely
// that the first one ends the circle before the next one looks.
//
// The query sees each wait at another instant, so a circle may be put together from
// waits that were not at the same time. A real one is there at the second look, too.
func (h *held) findDeadlock(ctx context.Context, cancel context.CancelCauseFunc) {
	sees := func() bool {
		row, err := h.outer.s.ask(ctx, fmt.Sprintf(findCycle, h.s.pid))
		return err == nil && len(row) == 1 && row[0] == "t"
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.outer.Done(): // released, so nobody waits for it any more
			return
		case <-time.After(deadlockAfter + rand.N(deadlockAfter/4)):
		}
		if !h.outer.s.alive() {
			return
		}
		if sees() && sees() {
			cancel(locker.ErrDeadlock)
			return
		}
	}
}
