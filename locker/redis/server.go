package redis

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/flockctx/flockctx/internal/lease"
	"github.com/flockctx/flockctx/internal/leased"
	"github.com/flockctx/flockctx/locker"
)

var (
	//go:embed common.lua
	commonLua string
	//go:embed claim.lua
	claimLua string
	//go:embed release.lua
	releaseLua string
	//go:embed renew.lua
	renewLua string
	//go:embed sweep.lua
	sweepLua string
	//go:embed holders.lua
	holdersLua string

	claimScript   = goredis.NewScript(commonLua + claimLua)
	releaseScript = goredis.NewScript(commonLua + releaseLua)
	renewScript   = goredis.NewScript(commonLua + renewLua)
	sweepScript   = goredis.NewScript(commonLua + sweepLua)
	holdersScript = goredis.NewScript(commonLua + holdersLua)
)

// server is the server of the engine: a script for each request.
type server struct {
	client goredis.UniversalClient
	key    string
}

func (s server) Claim(ctx context.Context, c *leased.Claim) (a leased.Answer, sent lease.Instant, err error) {
	rest := fmt.Sprintf("%d h=%s n=%s", c.PID, url.QueryEscape(c.Host), url.QueryEscape(c.Note))
	r, sent, err := s.run(ctx, claimScript, c.Name, c.ID, c.Owner, flag(c.Shared), flag(c.Try),
		c.TTL.Microseconds(), time.Since(c.Began).Microseconds(), rest)
	if err != nil {
		return a, sent, err
	}
	reply, err := r.Slice()
	if err != nil || len(reply) != 3 {
		return a, sent, fmt.Errorf("an answer that is none: %v, %w", reply, err)
	}
	granted, _ := reply[0].(int64)
	token, _ := reply[1].(string)
	look, _ := reply[2].(int64)
	a.Look = time.Duration(look) * time.Millisecond
	if a.Granted = granted == 1; a.Granted {
		a.Token, err = strconv.ParseUint(token, 10, 64)
	}
	return a, sent, err
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (s server) Release(ctx context.Context, id, name string) (found bool, sent lease.Instant, err error) {
	r, sent, err := s.run(ctx, releaseScript, name, id, s.channel(""))
	if err != nil {
		return false, sent, err
	}
	n, err := r.Int()
	return n == 1, sent, err
}

// renewAtOnce is how many claims one script renews: the server does nothing else meanwhile.
const renewAtOnce = 200

func (s server) Renew(ctx context.Context, _ string, ttl time.Duration, names map[string]string) (ids []string, sent lease.Instant, err error) {
	// By name, since the script reads and writes all claims on a name at once.
	all := slices.SortedFunc(maps.Keys(names), func(a, b string) int { return strings.Compare(names[a], names[b]) })
	var args []any
	for _, id := range all {
		args = append(args, names[id], id)
	}
	for part := range slices.Chunk(args, 2*renewAtOnce) {
		r, at, err := s.run(ctx, renewScript, append([]any{ttl.Microseconds()}, part...)...)
		if err != nil {
			return nil, at, err
		}
		here, err := r.StringSlice()
		if err != nil {
			return nil, at, err
		}
		ids = append(ids, here...)
		if sent == 0 {
			sent = at
		}
	}
	return ids, sent, nil
}

func (s server) Sweep(ctx context.Context) {
	for cursor := "0"; ; {
		r, _, err := s.run(ctx, sweepScript, cursor)
		if err != nil {
			return
		}
		if cursor, err = r.Text(); err != nil || cursor == "0" {
			return
		}
	}
}

func (s server) Holders(ctx context.Context, name string) ([]locker.Holder, error) {
	r, _, err := s.run(ctx, holdersScript, name)
	if err != nil {
		return nil, err
	}
	lines, err := r.Slice()
	if err != nil {
		return nil, err
	}
	var held, waiting []locker.Holder
	type place struct {
		since uint64
		h     locker.Holder
	}
	var all []place
	for _, line := range lines {
		f, ok := line.([]any)
		if !ok || len(f) != 5 {
			return nil, fmt.Errorf("an answer that is none: %v", line)
		}
		number := func(i int) uint64 {
			text, _ := f[i].(string)
			n, _ := strconv.ParseUint(text, 10, 64)
			return n
		}
		since, granted := number(1), number(2)
		h := locker.Holder{Mode: locker.Exclusive, Waiting: granted == 0, Since: time.UnixMicro(int64(max(since, granted)))}
		if h.Waiting {
			h.Since = time.UnixMicro(int64(since))
		}
		if f[0] == "1" {
			h.Mode = locker.Shared
		} else if !h.Waiting {
			h.Token = locker.Token{Epoch: "redis", N: number(3)}
		}
		rest, _ := f[4].(string)
		pid, rest, _ := strings.Cut(rest, " h=")
		host, note, _ := strings.Cut(rest, " n=")
		h.PID, _ = strconv.Atoi(pid)
		h.Host, _ = url.QueryUnescape(host)
		h.Note, _ = url.QueryUnescape(note)
		all = append(all, place{since, h})
	}
	slices.SortStableFunc(all, func(a, b place) int { return cmp.Compare(a.since, b.since) })
	for _, p := range all {
		if p.h.Waiting {
			waiting = append(waiting, p.h)
		} else {
			held = append(held, p.h)
		}
	}
	return append(held, waiting...), nil
}

func (s server) channel(owner string) string { return s.key + ":" + owner }

// Hear implements leased.Server by a subscription. Its connection is looked after by the
// client, which subscribes again when it had to connect anew.
func (s server) Hear(ctx context.Context, owner string, open func(), notice func(id string)) error {
	sub := s.client.Subscribe(ctx, s.channel(owner))
	defer sub.Close()
	rctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := sub.Receive(rctx); err != nil {
		if said := reply(err); said == "" || badPassword(said) || s.Transient(err) {
			return err // it may be another time
		}
		return leased.ErrDeaf // it may not, or cannot
	}
	open()
	messages := sub.ChannelWithSubscriptions()
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return errors.New("the subscription has ended")
			}
			switch m := m.(type) {
			case *goredis.Subscription:
				open()
			case *goredis.Message:
				notice(m.Payload)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// once is a command that the client does not repeat by itself: whoever sends it has to know
// whether it may have been done before.
type once struct{ *goredis.Cmd }

func (once) NoRetry() bool { return true }

// run has the server run a script.
func (s server) run(ctx context.Context, script *goredis.Script, args ...any) (r *goredis.Cmd, sent lease.Instant, err error) {
	// What is sent goes on there whatever becomes of ctx.
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	ctx = context.WithoutCancel(ctx)
	send := func(how, what string) error {
		sent = lease.Now()
		r = goredis.NewCmd(ctx, append([]any{how, what, 1, s.key}, args...)...)
		return s.client.Process(ctx, once{r})
	}
	if err = send("evalsha", script.Hash()); goredis.HasErrorPrefix(err, "NOSCRIPT") {
		err = send("eval", scriptText[script])
	}
	if err != nil && reply(err) == "" && s.Transient(err) {
		// A client of a cluster does not ask by itself who has taken over from a primary
		// that does not answer.
		if c, ok := s.client.(interface{ ReloadState(context.Context) }); ok {
			c.ReloadState(ctx)
		}
	}
	return r, sent, s.explain(err)
}

var scriptText = map[*goredis.Script]string{
	claimScript: commonLua + claimLua, releaseScript: commonLua + releaseLua, renewScript: commonLua + renewLua,
	sweepScript: commonLua + sweepLua, holdersScript: commonLua + holdersLua,
}

// reply returns what the server said, where err is that, and else "". What a command in a
// script was told comes in a wrapper before Redis 7.
func reply(err error) string {
	var e goredis.Error
	if !errors.As(err, &e) || errors.Is(err, goredis.Nil) {
		return ""
	}
	said := e.Error()
	const where = "@user_script:"
	if i := strings.LastIndex(said, where); i >= 0 && strings.HasPrefix(said, "ERR Error running script") {
		_, said, _ = strings.Cut(said[i+len(where):], ": ")
		said = strings.TrimPrefix(said, "-")
	}
	return said
}

// passing are what a server says that cannot serve for now.
var passing = []string{"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "BUSY", "NOREPLICAS",
	"MISCONF", "OOM", "ERR max number of clients"}

// Transient: whatever is not the server's word is the network's.
func (server) Transient(err error) bool {
	said := reply(err)
	if said == "" {
		return !errors.Is(err, goredis.ErrClosed)
	}
	return slices.ContainsFunc(passing, func(p string) bool { return strings.HasPrefix(said, p) })
}

// Refused: what the server has refused, and what was never sent.
func (server) Refused(err error) bool {
	var op *net.OpError
	return reply(err) != "" || errors.As(err, &op) && op.Op == "dial" || errors.Is(err, goredis.ErrPoolTimeout) || errors.Is(err, goredis.ErrClosed)
}

// badPassword: it may be changing, and the client's follow.
func badPassword(said string) bool {
	return strings.HasPrefix(said, "NOAUTH") || strings.HasPrefix(said, "WRONGPASS")
}

// explain adds to an error that does not pass what to do about it.
func (s server) explain(err error) error {
	switch said := reply(err); {
	case strings.HasPrefix(said, "NOPERM"), strings.Contains(said, "can't run this command"):
		return fmt.Errorf("the user needs EVAL, EVALSHA, TIME, INFO, HGET, HMGET, HSET, HDEL and HSCAN on the key %q: %w", s.key, err)
	case badPassword(said):
		return fmt.Errorf("the server refuses the credentials: %w", err)
	case strings.HasPrefix(said, "WRONGTYPE"):
		return fmt.Errorf("the key %q is something else than the locks: %w", s.key, err)
	}
	return err
}
