// Package redis is a [locker.Locker] on one Redis or Valkey server, version 6 or later:
// exclusive and shared locks by name for any number of machines, first come, first served,
// with a fencing token, waiting without polling.
//
//	client := goredis.NewClient(&goredis.Options{Addr: "localhost:6379"})
//	l := redis.New(client, nil)
//
// (github.com/redis/go-redis/v9 is a package redis too, so import one of the two under
// another name.)
//
// # What it promises
//
// Each process renews what it holds at least every 750 ms. A holder stops, its
// [locker.Held] context ends, when the server says that it does not have the lock any more,
// or when the renewals have not been answered for 90 % of the TTL, counted from when they
// were sent. The server lets the next one in after the whole TTL, by its own clock.
//
// A server that was restarted, promoted or emptied may have forgotten who holds what. So it
// grants nothing for a TTL after the first request that finds nothing stored, or what another
// server wrote, or itself in an earlier term as a primary: run_id tells the one, master_replid
// the other. The very first lock takes a TTL, too. Lock waits, TryLock says that the name is
// busy. All is kept in one hash, so that it cannot be lost in part.
//
// So two holders never overlap as long as there is one primary, no clock runs 10 % fast or
// slow, the server's clock is not set forward, and programs that share locks have the same
// TTL. What Redis cannot promise is that there is one primary: where a replica is promoted
// while the old primary still runs, cut off together with a holder, that holder is confirmed
// by the one and the next holder granted by the other. min-replicas-to-write has the old
// primary refuse renewals then, after min-replicas-max-lag. Where that is not enough, use
// etcd or PostgreSQL, or have the resource compare the token. docs/distributed.md compares
// them.
//
// # How it works
//
// A claim is a line in the hash: waiting until its granted time is not 0, and gone when it
// is released, or when somebody who wants the name finds that it has expired. Each request
// is a script, so that the server does one after the other.
//
//	state    becomes     by
//	–        waiting     claim.lua: somebody is ahead, or the server is quiet
//	–        held        claim.lua: nobody is ahead
//	waiting  held        claim.lua again: the waiter looks, because of a notice, because
//	                     the first of those ahead has expired, or at least every TTL/3
//	waiting  –           release.lua: the caller gave up; or it expires a TTL after its
//	                     last look
//	held     held        renew.lua, for another TTL
//	held     –           release.lua; or it expires a TTL after the last renewal
//
// release.lua publishes the claims that nobody blocks any more to the Lockers that have them.
// A notice that is lost costs time, and nothing else. Of the goroutines of one Locker that
// wait for one name, one is known to the server; the others stand in line behind it.
//
// The races: a release and a grant are scripts, so one of them is first. A grant whose
// answer is lost is found by its ID when the claim is sent again. A ctx that ends together
// with the grant wins: the claim is released behind the caller's back. A renewal that is
// answered after the holder's time was up revives nothing, though the server has the claim:
// it is released, or expires. A lock that is lost and released at the same time was lost.
package redis

import (
	"errors"
	"reflect"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/flockctx/flockctx/internal/leased"
	"github.com/flockctx/flockctx/locker"
)

// Options says how to lock. A nil *Options and the zero value are the defaults.
type Options struct {
	// TTL is how long the server keeps a lock without hearing from its holder, and how
	// long it grants nothing after it may have forgotten some. Zero means 15 s; it is at
	// least 1 s. A shorter one frees a crashed holder's lock sooner, a longer one keeps
	// a lock through a longer outage. Programs that share locks have the same.
	TTL time.Duration

	// Key is the key of the hash in which the locks are, and the beginning of the names
	// of the channels on which waiters hear of releases. Empty means "flockctx".
	// Programs that share locks have the same. In a cluster, all locks of a key are on
	// one shard.
	Key string
}

// renewEvery is how soon a holder learns that the server has lost its lock.
const renewEvery = 750 * time.Millisecond

// New returns a Locker that keeps its locks on the server of client, which the caller closes
// when no lock is held or waited for any more: a client for one server, for a primary that
// sentinels name, or for a cluster. It does no I/O; what is wrong with opts is reported by
// Lock.
//
// The server's user needs EVAL, EVALSHA, TIME, INFO (which Redis counts as dangerous, so that
// it has to be granted by name to a user without those rights), HGET, HMGET, HSET, HDEL, HSCAN on the
// key and, to be told of releases, PUBLISH and SUBSCRIBE on the channels "KEY:*"; without
// those waiters look by themselves, at first every few milliseconds, then less and less
// often up to every third of the TTL. While somebody waits, and for a TTL after that, the
// Locker has one connection of its own for that.
//
// Timeouts are the client's: a ReadTimeout of a third of the TTL or less leaves time to
// renew over another connection. The Locker is a [locker.Inspector] and an [io.Closer].
// Close ends the waits, and that connection; the client stays open.
func New(client goredis.UniversalClient, opts *Options) locker.Locker {
	o := leased.Options{Name: "redis", Every: renewEvery}
	s := server{client: client, key: "flockctx"}
	if opts != nil {
		o.TTL = opts.TTL
		if opts.Key != "" {
			s.key = opts.Key
		}
	}
	if v := reflect.ValueOf(client); client == nil || v.Kind() == reflect.Pointer && v.IsNil() {
		o.Invalid = errors.New("no client")
	}
	return leased.New(s, o)
}
