//go:build unix

package etcdtest_test

import (
)

// TestWaiterLosesItsPlace: a queued waiter whose lease has died must not wait for ever.
func TestWaiterLosesItsPlace(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	client := c.Client(t)
	l := open(client)
	h := lock(t, l, "place")
	for _, how := range []string{"revoke", "delete"} {
		errs := make(chan error)
		go func() { _, err := l.Lock(ctx(t), "place", locker.Exclusive); errs <- err }()
		var all []string
		var leases []clientv3.LeaseID
		for len(all) < 2 {
			all, leases = keys(t, client, "place")
		}
		var err error
		if how == "revoke" {
			_, err = client.Revoke(ctx(t), leases[1])
		} else {
			_, err = client.Delete(ctx(t), all[1])
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := <-errs; !errors.Is(err, locker.ErrLost) {
			t.Errorf("%s: %v", how, err)
		}
	}
	if err := h.Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
}

// TestStockMutex: a Mutex of the stock client on the same keys takes part in the queue.
func TestStockMutex(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, 1)
	client := c.Client(t)
	l := open(client)
	session, err := concurrency.NewSession(client)
	if err != nil {
		t.Fatal(err)
	}
	m := concurrency.NewMutex(session, "flockctx/stock")
	h := lock(t, l, "stock")
	if err := m.TryLock(ctx(t)); err != concurrency.ErrLocked {
		t.Errorf("Mutex.TryLock of a held lock: %v", err)
	}
	locked := make(chan error)
	go func() { locked <- m.Lock(ctx(t)) }()
	for {
		if all, _ := keys(t, client, "stock"); len(all) == 2 {
			break
		}
	}
	if err := h.Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
	if err := <-locked; err != nil {
		t.Fatal(err)
	}
	if h, err := l.TryLock(ctx(t), "stock", locker.Exclusive); err == nil {
		t.Errorf("TryLock of a Mutex's lock: %v", h)
	}
	if err := m.Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
	if err := lock(t, l, "stock").Unlock(ctx(t)); err != nil {
		t.Error(err)
	}
}
