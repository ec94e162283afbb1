package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

// wantHeld asks another process how l's lock is held: what the handle says and what
// the kernel has must be the same.
func wantHeld(t *testing.T, l *flockctx.Flock, other, otherShared *agent, want string) {
	t.Helper()
	says := "unlocked"
	if l.Locked() {
		says = l.Mode().String()
	}
	if says != want {
		t.Errorf("the handle says %s, want %s", says, want)
	}
	has := "exclusive"
	if otherShared.do("trylock") == "ok" {
		has = "shared"
		otherShared.must("unlock")
		if other.do("trylock") == "ok" {
			has = "unlocked"
			other.must("unlock")
		}
	}
	if has != want {
		t.Fatalf("the kernel says %s, want %s", has, want)
	}
}

func agents(t *testing.T, path string, mechanism flockctx.Mechanism) (exclusive, shared *agent) {
	return startAgent(t, path, flockctx.Options{Mechanism: mechanism}),
		startAgent(t, path, flockctx.Options{Mechanism: mechanism, Mode: flockctx.Shared})
}

func TestConvert(t *testing.T) {
	for _, mechanism := range mechanisms() {
		for _, borrowed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v,borrowed=%v", mechanism, borrowed), func(t *testing.T) {
				path := tempPath(t)
				other, otherShared := agents(t, path, mechanism)
				o := &flockctx.Options{Mechanism: mechanism}
				var l *flockctx.Flock
				if borrowed {
					f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
					must(t, err)
					defer f.Close()
					l, err = flockctx.LockFile(t.Context(), f, o)
					must(t, err)
					defer l.Close()
				} else {
					l = mustLock(t, path, o)
				}
				for range 3 {
					wantHeld(t, l, other, otherShared, "exclusive")
					must(t, l.Convert(t.Context(), flockctx.Exclusive)) // as it is
					wantHeld(t, l, other, otherShared, "exclusive")
					must(t, l.Convert(t.Context(), flockctx.Shared))
					wantHeld(t, l, other, otherShared, "shared")
					wantFree(t, path, flockctx.Options{Mechanism: mechanism, Mode: flockctx.Shared})
					must(t, l.Convert(t.Context(), flockctx.Exclusive))
				}
				must(t, l.Convert(t.Context(), flockctx.Shared))
				must(t, l.Unlock())
				wantHeld(t, l, other, otherShared, "unlocked")
				must(t, l.Lock(t.Context())) // in the mode of the last Convert
				wantHeld(t, l, other, otherShared, "shared")
				must(t, l.Close())
				wantHeld(t, l, other, otherShared, "unlocked")
			})
		}
	}
}

// A trap: Lock then RLock on one handle converts the kernel's lock, while the handle
// still says exclusive. Here a second lock of a handle, or of its open file, waits.
func TestSecondLockConvertsNothing(t *testing.T) {
	path := tempPath(t)
	other, otherShared := agents(t, path, flockctx.BSD)
	l := mustLock(t, path, nil)
	shared := &flockctx.Options{Mode: flockctx.Shared}
	_, err := flockctx.TryLockFile(l.File(), shared)
	wantErr(t, err, flockctx.ErrLocked)
	wantErr(t, l.TryLock(), flockctx.ErrLocked)
	wantHeld(t, l, other, otherShared, "exclusive")
	must(t, l.Unlock())
	r, err := flockctx.TryLockFile(l.File(), shared)
	must(t, err)
	wantErr(t, l.TryLock(), flockctx.ErrLocked)
	wantHeld(t, r, other, otherShared, "shared")
	must(t, r.Close())
	wantHeld(t, l, other, otherShared, "unlocked")
}

// A trap: a failed upgrade loses the shared lock, and the handle says that it is
// still held.
func TestFailedUpgradeKeepsTheSharedLock(t *testing.T) {
	for _, mechanism := range mechanisms() {
		for _, wait := range waits {
			for _, end := range []string{"deadline", "cancel"} {
				t.Run(fmt.Sprintf("%v,%v,%s", mechanism, wait, end), func(t *testing.T) {
					path := tempPath(t)
					other, otherShared := agents(t, path, mechanism)
					reader := startHolder(t, path, flockctx.Options{Mechanism: mechanism, Mode: flockctx.Shared})
					l := mustLock(t, path, &flockctx.Options{Mechanism: mechanism, Mode: flockctx.Shared, Wait: wait})
					check := func(err, want error) (waited bool) {
						t.Helper()
						wantErr(t, err, want)
						busy, ok := errors.AsType[*flockctx.BusyError](err)
						if !ok || busy.Mode != flockctx.Exclusive || busy.Path != path || errors.Is(err, flockctx.ErrNotLocked) {
							t.Fatalf("%#v", err)
						}
						return busy.Waited != 0
					}
					if end == "cancel" {
						ctx, cancel := context.WithCancel(t.Context())
						done := async(func() error { return l.Convert(ctx, flockctx.Exclusive) })
						eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
						cancel()
						if !check(soon(t, done, "Convert"), context.Canceled) {
							t.Error("the error says that it did not wait")
						}
					} else {
						// On a busy machine a short deadline can pass before the call.
						for d := 20 * time.Millisecond; ; d *= 4 {
							ctx, cancel := context.WithTimeout(t.Context(), d)
							err := soon(t, async(func() error { return l.Convert(ctx, flockctx.Exclusive) }), "Convert")
							cancel()
							if check(err, context.DeadlineExceeded) {
								break
							} else if d > 10*time.Second {
								t.Fatal("the error says that it did not wait")
							}
						}
					}
					reader.must("unlock")
					wantHeld(t, l, other, otherShared, "shared")
					must(t, l.Convert(t.Context(), flockctx.Exclusive))
					wantHeld(t, l, other, otherShared, "exclusive")
				})
			}
		}
	}
}

// With flock(2) a conversion lets others in. If then ctx ends, the lock is lost, and
// Convert says so.
func TestConvertThatLosesTheLockSaysSo(t *testing.T) {
	for _, wait := range waits {
		t.Run(wait.String(), func(t *testing.T) {
			path := tempPath(t)
			other, otherShared := agents(t, path, flockctx.BSD)
			otherShared.must("lock")
			l := mustLock(t, path, &flockctx.Options{Mode: flockctx.Shared, Wait: wait})
			waiter := newHandle(t, path, &flockctx.Options{Mode: flockctx.Shared})
			ctx, cancel := context.WithCancel(t.Context())
			done := async(func() error { return l.Convert(ctx, flockctx.Exclusive) })
			eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
			behind := async(func() error { return waiter.Lock(t.Context()) })
			eventually(t, "another goroutine waits behind it", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
			otherShared.must("exclude") // it converts as well, and is first
			cancel()
			err := soon(t, done, "Convert")
			wantErr(t, err, flockctx.ErrNotLocked, context.Canceled)
			if l.Locked() {
				t.Error("the handle says that it is locked")
			}
			wantErr(t, l.Unlock(), flockctx.ErrNotLocked)
			otherShared.must("unlock")
			must(t, soon(t, behind, "the goroutine behind it"))
			must(t, waiter.Close())
			must(t, other.wantOK("trylock"))
			other.must("unlock")
			must(t, l.Lock(t.Context())) // the handle is of use
		})
	}
}

func (a *agent) wantOK(order string) error {
	if s := a.do(order); s != "ok" {
		return fmt.Errorf("%s: %s", order, s)
	}
	return nil
}

// With flock(2) the file can go while the conversion lets others in.
func TestConvertOfAFileThatWasReplaced(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a Windows lock is converted otherwise")
	}
	for _, mechanism := range mechanisms() {
		path := tempPath(t)
		o := flockctx.Options{Mode: flockctx.Shared, Mechanism: mechanism}
		reader := startHolder(t, path, o)
		l := mustLock(t, path, &o)
		done := async(func() error { return l.Convert(t.Context(), flockctx.Exclusive) })
		eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
		must(t, os.Remove(path))
		reader.must("unlock")
		err := soon(t, done, "Convert")
		if mechanism == flockctx.OFD { // converted in one step, so nobody was let in
			must(t, err)
			continue
		}
		wantErr(t, err, flockctx.ErrNotLocked)
		if l.Locked() {
			t.Error("locked")
		}
		must(t, l.Lock(t.Context()))
		wantLocked(t, path, flockctx.Options{})
	}
}

// Two goroutines that each hold the file shared and want it exclusive.
func TestTwoUpgradesInOneProcess(t *testing.T) {
	for _, mechanism := range mechanisms() {
		path := tempPath(t)
		o := &flockctx.Options{Mode: flockctx.Shared, Mechanism: mechanism}
		a, b := mustLock(t, path, o), mustLock(t, path, o)
		first := async(func() error { return a.Convert(t.Context(), flockctx.Exclusive) })
		eventually(t, "the first waits", func() bool { return flockctx.Waiters(path, mechanism) == 1 })
		err := soon(t, async(func() error { return b.Convert(t.Context(), flockctx.Exclusive) }), "the second Convert")
		if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != path || pathErr.Op != "convert" || errors.Is(err, flockctx.ErrNotLocked) {
			t.Fatalf("%#v", err)
		}
		if !b.Locked() || b.Mode() != flockctx.Shared {
			t.Error("the second lost its lock")
		}
		wantErr(t, second(flockctx.TryLock(path, o)), flockctx.ErrLocked) // no reader passes the upgrade
		must(t, b.Unlock())
		must(t, soon(t, first, "the first Convert"))
		if a.Mode() != flockctx.Exclusive {
			t.Error("not exclusive")
		}
		wantLocked(t, path, *o)
		must(t, a.Convert(t.Context(), flockctx.Shared))
		must(t, b.TryLock())
		// An upgrade that waits for readers of the process ends with its context.
		ctx, cancel := context.WithCancel(t.Context())
		first = async(func() error { return a.Convert(ctx, flockctx.Exclusive) })
		eventually(t, "it waits", func() bool { return flockctx.Waiters(path, mechanism) == 1 })
		reader := async(func() error {
			l, err := flockctx.Lock(t.Context(), path, o)
			if err == nil {
				err = l.Close()
			}
			return err
		})
		eventually(t, "a reader waits behind it", func() bool { return flockctx.Waiters(path, mechanism) == 2 })
		cancel()
		wantErr(t, soon(t, first, "Convert after cancel"), context.Canceled)
		must(t, soon(t, reader, "the reader"))
		if !a.Locked() || a.Mode() != flockctx.Shared || !b.Locked() {
			t.Error("wrong state")
		}
	}
}

func TestCloseDuringConvert(t *testing.T) {
	for _, mechanism := range mechanisms() {
		for _, wait := range waits {
			for _, foreign := range []bool{false, true} {
				path := tempPath(t)
				o := flockctx.Options{Mode: flockctx.Shared, Mechanism: mechanism, Wait: wait}
				var release func()
				if foreign {
					reader := startHolder(t, path, o)
					release = func() { reader.must("unlock") }
				} else {
					reader := mustLock(t, path, &o)
					release = func() { must(t, reader.Unlock()) }
				}
				l := mustLock(t, path, &o)
				done := async(func() error { return l.Convert(context.Background(), flockctx.Exclusive) })
				eventually(t, "it waits", func() bool {
					return flockctx.WaitingOutside()+flockctx.Waiters(path, mechanism) == 1
				})
				if l.File() == nil {
					t.Error("no File during Convert")
				}
				must(t, soon(t, async(l.Close), "Close"))
				wantErr(t, soon(t, done, "Convert after Close"), fs.ErrClosed)
				release()
				wantFree(t, path, flockctx.Options{Mechanism: mechanism})
			}
		}
	}
}

// An OFD lock for writing needs a file that is open for writing: Convert says so and
// keeps what there is.
func TestConvertThatTheSystemRefuses(t *testing.T) {
	if len(mechanisms()) == 1 {
		t.Skip("no OFD locks")
	}
	path := tempPath(t)
	must(t, os.WriteFile(path, nil, 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	o := &flockctx.Options{Mechanism: flockctx.OFD, Mode: flockctx.Shared}
	l, err := flockctx.LockFile(t.Context(), f, o)
	must(t, err)
	err = l.Convert(t.Context(), flockctx.Exclusive)
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Op != "convert" || errors.Is(err, flockctx.ErrNotLocked) {
		t.Errorf("%#v", err)
	}
	other, otherShared := agents(t, path, flockctx.OFD)
	wantHeld(t, l, other, otherShared, "shared")
	must(t, l.Close())
	wantHeld(t, l, other, otherShared, "unlocked")
	_, err = flockctx.LockFile(t.Context(), f, &flockctx.Options{Mechanism: flockctx.OFD})
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != path {
		t.Errorf("exclusive on a read-only file: %#v", err)
	}
}

// Whatever happens, what the handle says is what
// the kernel has.
func TestConvertNeverLies(t *testing.T) {
	for _, mechanism := range mechanisms() {
		t.Run(mechanism.String(), func(t *testing.T) {
			path := tempPath(t)
			other, otherShared := agents(t, path, mechanism)
			o := flockctx.Options{Mechanism: mechanism, Mode: flockctx.Shared}
			rival := startAgent(t, path, o)
			l := newHandle(t, path, &o)
			results := make(map[string]int)
			for round := range 60 {
				if !l.Locked() {
					must(t, l.Lock(t.Context()))
				}
				busy := false
				if round%3 != 0 && l.Mode() == flockctx.Shared {
					rival.must("trylock")
					rival.send("exclude") // both convert at the same time
					busy = true
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(round%5)*500*time.Microsecond)
				before, m := l.Mode(), flockctx.Mode(round%2)
				err := l.Convert(ctx, m)
				cancel()
				switch {
				case err == nil:
					results["done"]++
					if !l.Locked() || l.Mode() != m {
						t.Fatal("nil, but not in that mode")
					}
				case errors.Is(err, flockctx.ErrNotLocked):
					results["lost"]++
					if l.Locked() {
						t.Fatal("lost, but locked")
					}
				default:
					results["kept"]++
					if !l.Locked() || l.Mode() != before {
						t.Fatalf("%v, but not as before", err)
					}
				}
				state := "unlocked"
				if l.Locked() {
					state = l.Mode().String()
				}
				if busy {
					// Out of the way of the rival, which waits, or has it.
					if l.Locked() {
						must(t, l.Unlock())
					}
					if s := rival.answer(); s != "ok" {
						t.Fatal(s)
					}
					rival.must("close")
					rival.must("lock")
					rival.must("unlock")
				} else {
					wantHeld(t, l, other, otherShared, state)
				}
				if round%7 == 0 && l.Locked() {
					must(t, l.Unlock())
				}
			}
			t.Log(results)
		})
	}
}
