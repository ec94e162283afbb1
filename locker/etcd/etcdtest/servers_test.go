//go:build unix

package etcdtest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/etcd"
	"github.com/flockctx/flockctx/locker/etcd/etcdtest"
)

// TestServers breaks servers of a cluster of three, and looks at who holds.
func TestServers(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 3)

	// With a TTL well above an election, a holder outlives its leader.
	t.Run("the leader is killed", func(t *testing.T) {
		l := etcd.New(c.Client(t), &etcd.Options{TTL: 10 * time.Second})
		h := lock(t, l, "leader")
		token, _ := h.Token()
		waiter := make(chan locker.Held, 1)
		go func() {
			h, err := l.Lock(ctx(t), "leader", locker.Exclusive)
			if err != nil {
				t.Error(err)
			} else {
				waiter <- h
			}
			close(waiter)
		}()
		leader, _ := c.Leader()
		leader.Kill()
		holds(t, h, 12*time.Second)
		select {
		case <-waiter:
			t.Fatal("two holders")
		default:
		}
		if err := h.Unlock(ctx(t)); err != nil {
			t.Errorf("Unlock without the old leader: %v", err)
		}
		next, ok := <-waiter
		if !ok {
			return
		}
		if second, _ := next.Token(); second.N <= token.N || second.Epoch != token.Epoch {
			t.Errorf("token %v after %v", second, token)
		}
		if err := next.Unlock(ctx(t)); err != nil {
			t.Error(err)
		}
		leader.Run()
		c.Ready()
	})

	t.Run("a follower is frozen", func(t *testing.T) {
		client := c.Client(t)
		l := open(client)
		for done := 0; done < 2; {
			leader, followers := c.Leader()
			h := lock(t, l, "follower")
			followers[done].Freeze()
			select {
			case <-h.Context().Done():
			case <-time.After(3 * ttl):
			}
			err := h.Unlock(ctx(t))
			now, _ := c.Leader()
			followers[done].Thaw()
			c.Ready()
			if now != leader {
				t.Log("the others have elected a new leader meanwhile, once more")
				continue
			}
			if err != nil {
				t.Errorf("Unlock with follower %d frozen: %v", done, err)
			}
			done++
		}
	})

	t.Run("the leader is frozen", func(t *testing.T) {
		// Several clients, so that some have their streams at the leader.
		const n = 6
		type lockOf struct {
			h              locker.Held
			ended, granted chan time.Time
		}
		var all []lockOf
		var wg sync.WaitGroup
		for i := range n {
			a, b := open(c.Client(t)), open(c.Client(t))
			name := fmt.Sprint("freeze", i)
			l := lockOf{lock(t, a, name), make(chan time.Time, 1), make(chan time.Time, 1)}
			context.AfterFunc(l.h.Context(), func() { l.ended <- time.Now() })
			wg.Go(func() {
				h, err := b.Lock(ctx(t), name, locker.Exclusive)
				for errors.Is(err, locker.ErrLost) {
					// Its place in the queue goes with the leader if the
					// election takes as long as the TTL.
					h, err = b.Lock(ctx(t), name, locker.Exclusive)
				}
				l.granted <- time.Now()
				if err != nil {
					t.Error(err)
					return
				}
				// It may have been lost to the election again.
				if err := h.Unlock(ctx(t)); err != nil && !errors.Is(err, locker.ErrLost) {
					t.Error(err)
				}
			})
			for waiting := 0; waiting != 2; {
				all, _ := keys(t, c.Client(t), name)
				waiting = len(all)
			}
			all = append(all, l)
		}
		leader, _ := c.Leader()
		leader.Freeze()
		time.Sleep(3 * ttl)
		var apart []time.Duration
		for _, l := range all {
			// It is held by the one or by the other, or was handed on.
			l.h.Unlock(ctx(t))
			end, grant := <-l.ended, <-l.granted
			apart = append(apart, grant.Sub(end).Round(time.Millisecond))
			if grant.Before(end) {
				t.Error("two holders")
			}
		}
		wg.Wait()
		leader.Thaw()
		c.Ready()
		t.Logf("from the end of the holder's Context to the next grant: %v", apart)
	})

	t.Run("quorum is lost", func(t *testing.T) {
		client := c.Client(t)
		l := open(client)
		h := lock(t, l, "quorum")
		leader, followers := c.Leader()
		leader.Freeze()
		followers[0].Freeze()
		begin := time.Now()
		lost(t, h)
		t.Logf("Context ended after %v", time.Since(begin))
		for _, f := range []func(context.Context, string, locker.Mode) (locker.Held, error){l.Lock, l.TryLock} {
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			if h, err := f(ctx, "quorum", locker.Exclusive); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("without quorum: %v, %v", h, err)
			} else {
				t.Log(err)
			}
			cancel()
		}
		short, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if err := h.Unlock(short); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Unlock: %v", err)
		}
		leader.Thaw()
		followers[0].Thaw()
		c.Ready()
		if err := lock(t, l, "quorum").Unlock(ctx(t)); err != nil {
			t.Error(err)
		}
		if all, _ := keys(t, client, "quorum"); len(all) > 0 {
			t.Errorf("left: %v", all)
		}
	})
}
