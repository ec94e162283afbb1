package advisory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/internal/line"
	"github.com/flockctx/flockctx/internal/lineage"
	"github.com/flockctx/flockctx/locker"
)

const (
	// checkInterval is how often a backend that waits looks whether its client is
	// still there. Servers on some systems cannot do that and refuse the setting
	// (Windows, older macOS). A waiter that has gone keeps its place there until its
	// turn comes.
	checkInterval = 100 * time.Millisecond
	checkSetting  = "client_connection_check_interval"

	// patience bounds one attempt to connect, and the wait for the answer to a try.
	patience = lease.Patience

	// slice is how long a wait is one query. In between its transaction ends: CREATE
	// INDEX CONCURRENTLY waits for all that are older, and vacuum removes nothing
	// that one of them might see. The place in the server's queue is a new one then.
	slice = time.Second

	// Pauses after an error that may pass: the first, and the longest that they grow to.
	minPause = 50 * time.Millisecond
	maxPause = time.Second
)

// An attempt is one call that wants a lock.
type attempt struct {
	engine *engine
	call   *lease.Call
	try    bool
	parent lineage.Lock // the lock under which it was called, of whatever engine, or nil
	outer  *held        // the nearest one of the same engine that is held, or nil
	began  time.Time
	asked  bool  // the server has the question, and keeps its answer
	why    error // why no server has been asked, or nil
}

func (a *attempt) unanswered(err error) error {
	if a.asked && !a.try {
		return nil
	}
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		if a.why != nil {
			return a.why
		}
		return a.engine.silence()
	}
	return err
}

// acquire takes the lock. The goroutines of this process that wait for one name stand in
// line, and the first has a connection: not those under another lock, whose waits
// must be seen by who looks for deadlocks.
func (a *attempt) acquire(ctx context.Context) (h *held, err error) {
	e := a.engine
	var l *line.Line
	if !a.try && a.outer == nil {
		if l, a.why, err = e.lines.Enter(ctx, a.call.Name, a.began); err != nil {
			a.asked = a.why == nil // by the first in line
			return nil, err
		}
		defer l.Leave()
	}
	reached := func(why error) {
		if l != nil && ctx.Err() == nil {
			l.Answered(why)
		}
	}
	var limit context.Context // to reach the server
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		s, err := e.take(), error(nil)
		kept := s != nil
		if !kept {
			if err := e.slot(ctx); err != nil {
				a.asked = true // it is no server that keeps it waiting
				return nil, err
			}
		}
		if limit == nil {
			var cancel context.CancelFunc
			limit, cancel = lease.Reach(ctx)
			defer cancel()
		}
		if !kept {
			if s, err = e.connect(limit); err == nil {
				err = e.settle(s)
			}
		}
		if err == nil {
			reached(nil)
			began := time.Now()
			h, err := a.on(ctx, s)
			if err != nil && ctx.Err() == nil && kept && !s.alive() && time.Since(began) < time.Second {
				pause = minPause / 2 // the session had ended while it was idle
				continue
			}
			if err == nil || ctx.Err() != nil || !transient(err) {
				return h, err
			}
		}
		if !transient(err) {
			return nil, err
		}
		if limit.Err() == nil || a.why == nil {
			a.asked = false
			a.why = a.unanswered(err)
		}
		reached(a.why)
		select {
		case <-time.After(pause):
		case <-limit.Done():
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, lease.Unavailable(a.why)
		}
	}
}

// transient reports whether err may pass: the server cannot be reached, or cannot serve
// now. A place in the queue that was lost is the caller's to hear of.
func transient(err error) bool {
	if errors.Is(err, locker.ErrLost) || errors.Is(err, locker.ErrDeadlock) || errors.Is(err, errors.ErrUnsupported) || err == errBusy {
		return false
	}
	pe, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return !errors.Is(err, errSequence)
	}
	return slices.Contains([]string{"08", "40", "53"}, pe.Code[:2]) || slices.Contains([]string{"57P01", "57P02", "57P03", "57P05"}, pe.Code)
}

// errSequence: the sequence cannot serve.
var errSequence = errors.New("the tokens' sequence")

// on asks for the lock on session s, which is closed, or idle again, if that fails. A
// wait that ends early closes the connection: a query that was cancelled may have been
// granted before, so nothing else may come over it.
func (a *attempt) on(ctx context.Context, s *session) (*held, error) {
	e, k := a.engine, Key(a.call.Name)
	h := &held{engine: e, call: a.call, s: s, parent: a.parent, outer: a.outer}
	var shared, sql string
	if a.call.Mode == locker.Shared {
		shared = "_shared"
	}
	// The token is drawn under the lock, in the same round trip.
	switch {
	case a.try && shared == "":
		sql = e.draw(s, fmt.Sprintf("case when pg_try_advisory_lock(%d) then nextval('%s') end", k, e.sequenceLiteral()))
	case a.try:
		sql = fmt.Sprintf("select case when pg_try_advisory_lock_shared(%d) then 0 end", k)
	default:
		// Of what follows, only the lock may fail for want of time.
		token := "select 0"
		if shared == "" {
			token = e.draw(s, fmt.Sprintf("nextval('%s')", e.sequenceLiteral()))
		}
		sql = fmt.Sprintf("set lock_timeout = %d; select pg_advisory_lock%s(%d); set lock_timeout = 0; %s", slice.Milliseconds(), shared, k, token)
	}
	h.unlock = fmt.Sprintf("select pg_advisory_unlock%s(%d)", shared, k)

	sent := lease.Now()
	a.asked = true
	wait, cancel := context.WithCancelCause(ctx)
	switch {
	case a.try:
		defer time.AfterFunc(patience, func() { cancel(context.DeadlineExceeded) }).Stop()
	case h.outer != nil:
		go h.findDeadlock(wait, cancel)
	}
	sql = h.descent() + sql + " /* flockctx " + Comment(a.call.Name) + " */"
	row, err := s.ask(wait, sql)
	for wait.Err() == nil && timedOut(err) {
		sent = lease.Now()
		row, err = s.ask(wait, sql)
	}
	cause := context.Cause(wait)
	cancel(nil)
	if err != nil {
		s.close()
		pe, _ := errors.AsType[*pgconn.PgError](err)
		switch {
		case cause == locker.ErrDeadlock && ctx.Err() == nil:
			err = fmt.Errorf("%w: it waits for a lock under which it was called", cause)
		case pe != nil && pe.Code == "40P01":
			err = fmt.Errorf("%w: %w", locker.ErrDeadlock, err)
		case cause != nil && ctx.Err() == nil:
			err = fmt.Errorf("%w within %v", e.silence(), patience)
		case ended(err):
			err = fmt.Errorf("%w: the connection has ended: %w", locker.ErrLost, err)
		}
		return nil, err
	}
	if len(row) == 0 || row[0] == "" { // null
		e.put(s)
		return nil, errBusy
	}
	// After a wait it is open how long the answer was under way, and how long the
	// server has taken the session for idle. Ask again.
	if waited := time.Duration(lease.Now() - sent); waited > e.ttl/lease.Margin {
		sent = lease.Now()
		wait, cancel := context.WithTimeout(ctx, e.ttl)
		_, err := s.ask(wait, "select 1")
		cancel()
		if err != nil {
			s.close()
			if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				err = e.silence()
			}
			return nil, fmt.Errorf("%w: the connection has ended: %w", locker.ErrLost, err)
		}
	}
	if a.call.Mode == locker.Exclusive {
		n, err := strconv.ParseUint(row[0], 10, 64)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("%w %s: its value %q: %w", errSequence, e.sequence, row[0], err)
		}
		if n>>timelineShift != 0 {
			s.close()
			return nil, fmt.Errorf("%w %s: its value %d is too large", errSequence, e.sequence, n)
		}
		// A promoted replica may not have the last values.
		h.token, h.fenced = locker.Token{Epoch: s.epoch + "." + row[1], N: s.timeline<<timelineShift | n}, true
	}
	h.Proof = lease.New(ctx, e.ttl, sent, a.call.String())
	return h, nil
}

// draw returns the query for what token yields, if that is not null, with the identity
// of the sequence it comes from: another search_path, or a sequence that was made anew,
// is another epoch.
//
// A sequence's state is logged once in 32 values, and whoever draws the first of them
// waits until the record is on disk. One that draws the next meanwhile would not, and a
// crash could bring its token back. So the transaction is made to wait, by a record of
// its own, whenever anything is not on disk yet, or nobody can tell.
func (e *engine) draw(s *session, token string) string {
	dirty := "n is not null"
	if s.timeline > 0 {
		dirty += " and pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()"
	}
	return fmt.Sprintf("select n, '%s'::regclass::oid, case when %s then pg_logical_emit_message(true, 'flockctx', '') end from (select %s as n) drawn", e.sequenceLiteral(), dirty, token)
}

// Comment returns name for use inside a comment, where those who look at
// pg_stat_activity see it.
func Comment(name string) string {
	return strings.NewReplacer("*/", "* /", "/*", "/ *").Replace(strconv.QuoteToASCII(name))
}

// timedOut reports whether err ended a slice.
func timedOut(err error) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pe.Code == "55P03"
}

// ended reports whether err is the end of the connection, and not an answer that left
// it open.
func ended(err error) bool {
	pe, answered := errors.AsType[*pgconn.PgError](err)
	return !answered || pe.SeverityUnlocalized == "FATAL" || pe.SeverityUnlocalized == "PANIC"
}

// setup prepares a session. What a role or database has set as timeouts would end the
// wait or the lock. The lock is lost to others a TTL after the last sign of life; the
// timer runs only while the session is idle, so it is set before the wait: a waiter
// whose network fails is granted the lock and cannot know. Where TCP keeps watch, the
// server looks after dead clients that wait, too: but never sooner than a TTL after
// their last sign of life, or the lock would go to others while its holder believes in
// it. A token must not come back after a crash, so the sequence's record must be on
// disk.
const setup = `set statement_timeout = 0;
set lock_timeout = 0;
set idle_in_transaction_session_timeout = 0;
select set_config(name, '0', false) from pg_settings where name = 'transaction_timeout';
%[1]sset idle_session_timeout = %[2]d;
set tcp_keepalives_idle = %[3]d;
set tcp_keepalives_interval = %[3]d;
set tcp_keepalives_count = 3;
set tcp_user_timeout = %[2]d;
select set_config('synchronous_commit', case current_setting('synchronous_commit') when 'off' then 'local' else current_setting('synchronous_commit') end, false);`

// What a session must know of its server: the process, an epoch, the timeline, how many
// milliseconds ago the server started, and when. Managed servers may lack the functions
// of the first; in the other the timeline is 0.
const (
	identity        = "select pg_backend_pid(), (select system_identifier from pg_control_system()), case when not pg_is_in_recovery() then substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end, " + started
	identityWithout = "select pg_backend_pid(), (select oid from pg_database where datname = current_database()), case when not pg_is_in_recovery() then '0' end, " + started
	started         = "(extract(epoch from clock_timestamp() - pg_postmaster_start_time()) * 1000)::bigint, pg_postmaster_start_time()"
)

// timelineShift is where the timeline stands in a token. The sequence has the bits below.
const timelineShift = 44

// connect opens a session that can lock.
func (e *engine) connect(ctx context.Context) (s *session, err error) {
	cctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	defer func() {
		if !errors.Is(err, context.DeadlineExceeded) {
			return
		}
		limit, _ := cctx.Deadline()
		if own, ok := ctx.Deadline(); ok && !own.After(limit) {
			<-ctx.Done() // the network may hear of it a moment earlier
		} else if ctx.Err() == nil {
			// An error that matches the end of a context would blame the caller's.
			err = fmt.Errorf("%w within %v (%v)", e.silence(), patience, err)
		}
	}()
	conn, err := pgconn.ConnectConfig(cctx, e.config)
	if err != nil {
		e.freeSlot()
		return nil, explain(err)
	}
	version := conn.ParameterStatus("server_version")
	if s, err = newSession(conn, e.freeSlot); err != nil {
		return nil, err
	}
	if err := e.prepare(cctx, s, version); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (e *engine) prepare(ctx context.Context, s *session, version string) error {
	if major, err := strconv.Atoi(leadingDigits(version)); err == nil && major < minVersion {
		return fmt.Errorf("server version %s, PostgreSQL %d or later is needed: %w", version, minVersion, errors.ErrUnsupported)
	}
	// A pooler answers for a backend that changes from query to query. Its own
	// handshake names another process, or none.
	row, err := s.ask(ctx, "select pg_backend_pid()")
	if err != nil {
		return err
	}
	if len(row) != 1 || row[0] != strconv.FormatUint(uint64(s.pid), 10) {
		return errPooler
	}
	seconds := int64((e.ttl + 3*time.Second - 1) / (3 * time.Second))
	set := func(check string) ([]string, error) {
		return s.ask(ctx, fmt.Sprintf(setup, check, e.ttl.Milliseconds(), seconds))
	}
	row, err = set(fmt.Sprintf("set %s = %d;\n", checkSetting, checkInterval.Milliseconds()))
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok && strings.Contains(pe.Message, checkSetting) {
		row, err = set("")
	}
	if err == nil {
		row, err = s.ask(ctx, identity)
		if err != nil && !ended(err) {
			row, err = s.ask(ctx, identityWithout)
		}
	}
	switch {
	case err != nil:
		return err
	case len(row) != 5 || row[0] != strconv.FormatUint(uint64(s.pid), 10):
		return errPooler
	case row[2] == "":
		return fmt.Errorf("the server is a standby, and its locks bind nobody on the primary: %w", errors.ErrUnsupported)
	}
	s.epoch = row[1]
	if s.timeline, err = strconv.ParseUint(row[2], 16, 64-timelineShift); err != nil {
		return err
	}
	age, err := strconv.ParseInt(row[3], 10, 64)
	if err != nil {
		return err
	}
	s.server, s.age = row[2]+" "+row[4], time.Duration(age)*time.Millisecond
	if e.checked.Load() {
		return nil
	}
	if err := e.ensureSequence(ctx, s); err != nil {
		return fmt.Errorf("%w %s: %w", errSequence, e.sequence, err)
	}
	e.checked.Store(true)
	return nil
}

var errPooler = fmt.Errorf("a connection pooler is in between, which would give one lock to several clients; connect to the server itself: %w", errors.ErrUnsupported)

// ensureSequence makes the sequence of the tokens, and refuses one that would not
// grow from grant to grant.
func (e *engine) ensureSequence(ctx context.Context, s *session) error {
	look := fmt.Sprintf("select seqcache = 1 and seqincrement > 0 and not seqcycle and relpersistence = 'p' from pg_sequence join pg_class on pg_class.oid = seqrelid where seqrelid = to_regclass('%s')", e.sequenceLiteral())
	row, err := s.ask(ctx, look)
	if err != nil {
		return err
	}
	if len(row) == 0 {
		// Two that create it at once: one of them may get a unique violation.
		_, cerr := s.ask(ctx, "create sequence if not exists "+e.sequence)
		if row, err = s.ask(ctx, look); err != nil {
			return err
		}
		if len(row) == 0 {
			return fmt.Errorf("missing, and cannot be created: %w", cerr)
		}
	}
	if row[0] != "t" {
		return errors.New("its values do not rise from one session to the next, or after a crash: it needs CACHE 1, a positive INCREMENT, NO CYCLE, and to be neither UNLOGGED nor TEMPORARY")
	}
	return nil
}

// sequenceLiteral returns the quoted name for use inside a string literal.
func (e *engine) sequenceLiteral() string { return strings.ReplaceAll(e.sequence, "'", "''") }

func leadingDigits(s string) string {
	i := 0
	for i < len(s) && '0' <= s[i] && s[i] <= '9' {
		i++
	}
	return s[:i]
}

// silence says who does not answer.
func (e *engine) silence() error {
	var at []string
	add := func(host string, port uint16) {
		// A host is there twice if it is tried with and without TLS.
		if _, address := pgconn.NetworkAddress(host, port); !slices.Contains(at, address) {
			at = append(at, address)
		}
	}
	add(e.config.Host, e.config.Port)
	for _, f := range e.config.Fallbacks {
		add(f.Host, f.Port)
	}
	return fmt.Errorf("no answer from the server at %s", strings.Join(at, ", "))
}

// explain adds to a connection's error what to do about it.
func explain(err error) error {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case !ok:
		return fmt.Errorf("the server cannot be reached: %w", err)
	case pe.Code == "53300":
		return fmt.Errorf("the server has no connection left (max_connections; each lock and each waiter needs one): %w", err)
	case strings.HasPrefix(pe.Code, "28"):
		return fmt.Errorf("the server refuses the credentials: %w", err)
	}
	return err
}
