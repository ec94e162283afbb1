package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

// One goroutine waits for another process, for itself and for all behind it: as the
// strictest of them wants it.

// slow polls so rarely that it would not be noticed in a test.
func slow(mode flockctx.Mode) *flockctx.Options {
	return &flockctx.Options{Mode: mode, Wait: flockctx.WaitPoll, Poll: flockctx.Backoff{Min: time.Hour, Max: time.Hour}}
}

// startSlow has a goroutine wait for path in front of all others, which polls as o says.
func startSlow(t *testing.T, ctx context.Context, path string, o *flockctx.Options) (l *flockctx.Flock, done <-chan error) {
	t.Helper()
	l = newHandle(t, path, o)
	done = async(func() error { return l.Lock(ctx) })
	eventually(t, "the slow one waits", func() bool { return flockctx.WaitingOutside() == 1 })
	time.Sleep(time.Millisecond) // into its first interval
	return l, done
}

// Behind one that polls once an hour, others get the lock when it is free, each as its
// own options say, and keep their deadlines.
func TestEagerBehindSlow(t *testing.T) {
	for _, mechanism := range mechanisms() {
		for _, wait := range waits {
			for _, modes := range [][2]flockctx.Mode{
				{flockctx.Exclusive, flockctx.Exclusive}, {flockctx.Shared, flockctx.Exclusive},
				{flockctx.Exclusive, flockctx.Shared}, {flockctx.Shared, flockctx.Shared},
			} {
				t.Run(fmt.Sprintf("%v,%v,%v behind %v", mechanism, wait, modes[1], modes[0]), func(t *testing.T) {
					path := tempPath(t)
					holder := startHolder(t, path, flockctx.Options{Mechanism: mechanism})
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					lazy := slow(modes[0])
					lazy.Mechanism = mechanism
					l, first := startSlow(t, ctx, path, lazy)
					eager := &flockctx.Options{Mode: modes[1], Mechanism: mechanism, Wait: wait}
					// One that gives up before is no reason for the slow one to be slow again.
					err := endsWithin(path, eager, 10*time.Millisecond)
					wantErr(t, err, context.DeadlineExceeded)
					got := make(chan struct{})
					second := async(func() error {
						l, err := flockctx.Lock(ctx, path, eager)
						if err != nil {
							return err
						}
						close(got)
						return l.Close()
					})
					eventually(t, "the eager one waits", func() bool { return flockctx.Waiters(path, mechanism) == 1 })
					holder.must("unlock")
					// The slow one has it first, which is in front; it goes on at once.
					must(t, soon(t, first, "the slow one"))
					must(t, l.Close()) // not CloseHolders: the eager one may have it too, and be about to return it
					soon(t, got, "the eager one")
					must(t, soon(t, second, "the eager one"))
				})
			}
		}
	}
}

// endsWithin locks path with a deadline, and returns how that ended.
func endsWithin(path string, o *flockctx.Options, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	l, err := flockctx.Lock(ctx, path, o)
	if err == nil {
		err = l.Close()
	}
	return err
}

// Whoever is left when the eager ones have given up waits as it wants again, and hears of
// the end of its own context at once.
func TestSlowAfterTheEagerHaveLeft(t *testing.T) {
	path := tempPath(t)
	startHolder(t, path, flockctx.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	_, first := startSlow(t, ctx, path, slow(flockctx.Exclusive))
	for range 5 {
		for _, wait := range waits {
			err := endsWithin(path, &flockctx.Options{Wait: wait}, 3*time.Millisecond)
			wantErr(t, err, context.DeadlineExceeded)
		}
	}
	cancel()
	wantErr(t, soon(t, first, "the slow one"), context.Canceled)
	if n := flockctx.WaitingOutside(); n != 0 {
		t.Errorf("%d still wait", n)
	}
}

// When the slow one leaves, whoever is next waits as it wants itself.
func TestEagerAfterTheSlowHasLeft(t *testing.T) {
	for _, wait := range waits {
		path := tempPath(t)
		holder := startHolder(t, path, flockctx.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		_, first := startSlow(t, ctx, path, slow(flockctx.Exclusive))
		second := async(func() error {
			l, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Wait: wait})
			if err == nil {
				err = l.Close()
			}
			return err
		})
		eventually(t, "the eager one waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
		cancel()
		wantErr(t, soon(t, first, "the slow one"), context.Canceled)
		holder.must("unlock")
		must(t, soon(t, second, "the eager one"))
	}
}

// A slow one that joins behind an eager one changes nothing for that.
func TestSlowBehindEager(t *testing.T) {
	for _, wait := range waits {
		path := tempPath(t)
		holder := startHolder(t, path, flockctx.Options{})
		l := newHandle(t, path, &flockctx.Options{Wait: wait})
		first := async(func() error { return l.Lock(t.Context()) })
		eventually(t, "the eager one waits", func() bool { return flockctx.WaitingOutside() == 1 })
		ctx, cancel := context.WithCancel(t.Context())
		second := async(func() error { _, err := flockctx.Lock(ctx, path, slow(flockctx.Exclusive)); return err })
		eventually(t, "the slow one waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
		holder.must("unlock")
		must(t, soon(t, first, "the eager one"))
		cancel()
		wantErr(t, soon(t, second, "the slow one"), context.Canceled)
	}
}

// Of readers that are let in together one waits for another process, and the others go
// back to the head of the queue, not to its tail: a writer that came later does not get
// in before them.
func TestReadersThatRetreatKeepTheirPlace(t *testing.T) {
	path := tempPath(t)
	own := mustLock(t, path, nil)
	order := make(chan string, 3)
	lock := func(name string, mode flockctx.Mode, waiting int) <-chan error {
		done := async(func() error {
			return flockctx.Do(t.Context(), path, &flockctx.Options{Mode: mode}, func(*flockctx.Flock) error { order <- name; return nil })
		})
		eventually(t, name+" waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == waiting })
		return done
	}
	all := []<-chan error{lock("reader", flockctx.Shared, 1), lock("reader", flockctx.Shared, 2), lock("writer", flockctx.Exclusive, 3)}
	// The lock is lost to another process, which this one notices when it unlocks.
	must(t, own.File().Close())
	holder := startHolder(t, path, flockctx.Options{})
	wantErr(t, own.Unlock(), fs.ErrClosed)
	eventually(t, "one reader waits for the other process", func() bool {
		return flockctx.WaitingOutside() == 1 && flockctx.Waiters(path, flockctx.BSD) == 2
	})
	holder.must("unlock")
	for _, done := range all {
		must(t, soon(t, done, "Lock"))
	}
	if a, b, c := <-order, <-order, <-order; a != "reader" || b != "reader" || c != "writer" {
		t.Errorf("order: %s, %s, %s", a, b, c)
	}
}

// All errors are right where everybody gives up at the same moment.
func TestAllGiveUpAtOnce(t *testing.T) {
	path := tempPath(t)
	startHolder(t, path, flockctx.Options{})
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		var all []<-chan error
		for i := range 8 {
			o := &flockctx.Options{Mode: flockctx.Mode(i / 2 % 2), Wait: waits[i%len(waits)]}
			all = append(all, async(func() error { _, err := flockctx.Lock(ctx, path, o); return err }))
		}
		eventually(t, "all wait", func() bool {
			return flockctx.WaitingOutside()+flockctx.Waiters(path, flockctx.BSD) == 8
		})
		cancel()
		for _, ch := range all {
			if err := soon(t, ch, "Lock after cancel"); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
	}
}
