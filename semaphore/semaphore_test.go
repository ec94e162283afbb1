package semaphore_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/semaphore"
)

func TestEachSlotOnce(t *testing.T) {
	path := tempPath(t)
	const n = 5
	seen := make(map[int]bool)
	for range n {
		p := mustAcquire(t, path, n)
		if seen[p.Slot()] || p.Slot() < 0 || p.Slot() >= n {
			t.Fatalf("slot %d after %v", p.Slot(), seen)
		}
		seen[p.Slot()] = true
	}
	wantFull(t, path, n)
}

func TestSlotsOfTwoProcesses(t *testing.T) {
	path := tempPath(t)
	a := startAgent(t, path, 2)
	slot := a.want("acquire", "ok")
	p := mustAcquire(t, path, 2)
	if fmt.Sprint("ok ", p.Slot()) == slot {
		t.Fatalf("both have slot %d", p.Slot())
	}
	a.want("try", "locked")
	must(t, p.Release())
	a.want("try", "ok")
	wantFull(t, path, 2)
	a.want("release", "ok")
	a.want("release", "ok")
	wantFree(t, path, 2)
}

func TestAcquireWaitsForARelease(t *testing.T) {
	for _, wait := range []flockctx.Wait{flockctx.WaitAuto, flockctx.WaitPoll} {
		t.Run(wait.String(), func(t *testing.T) {
			path := tempPath(t)
			a := startHolder(t, path, 2)
			first := acquire(t.Context(), path, 2, &flockctx.Options{Wait: wait})
			second := acquire(t.Context(), path, 2, &flockctx.Options{Wait: wait})
			stillWaiting(t, first)
			stillWaiting(t, second)
			a.want("release", "ok")
			a.want("release", "ok")
			permit(t, first)
			permit(t, second)
			wantFull(t, path, 2)
		})
	}
}

func TestReleaseWhileTheOthersWaitInOneProcess(t *testing.T) {
	path := tempPath(t)
	const n, goroutines, rounds = 3, 24, 20
	var mu sync.Mutex
	inside := make(map[int]bool)
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range rounds {
				p, err := semaphore.Acquire(t.Context(), path, n, nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if inside[p.Slot()] {
					t.Errorf("slot %d twice", p.Slot())
				}
				inside[p.Slot()] = true
				mu.Unlock()
				time.Sleep(50 * time.Microsecond)
				mu.Lock()
				delete(inside, p.Slot())
				mu.Unlock()
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	wantFree(t, path, n)
}

// With one slot a variable needs no other lock, and the race detector agrees.
func TestOneSlotGuardsMemory(t *testing.T) {
	path := tempPath(t)
	counter := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				p, err := semaphore.Acquire(t.Context(), path, 1, nil)
				if err != nil {
					t.Error(err)
					return
				}
				counter++
				p.Release()
			}
		})
	}
	wg.Wait()
	if counter != 8*50 {
		t.Errorf("counted %d", counter)
	}
}

func TestContextEndsTheWait(t *testing.T) {
	path := tempPath(t)
	mustAcquire(t, path, 1)
	// The first one waits for a slot, the second for its turn.
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	first := acquire(ctx, path, 1, nil)
	stillWaiting(t, first)
	second := acquire(ctx, path, 1, nil)
	stillWaiting(t, second)
	cancel(why)
	for _, ch := range []<-chan grant{first, second} {
		err := soon(t, ch, "the end of the context").err
		wantErr(t, err, context.Canceled, why)
		busy, ok := errors.AsType[*flockctx.BusyError](err)
		if !ok || busy.Path != path || busy.Waited <= 0 || busy.Timeout() {
			t.Errorf("error %#v", busy)
		}
	}
	ctx, cancelDeadline := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancelDeadline()
	_, err := semaphore.Acquire(ctx, path, 1, nil)
	wantErr(t, err, context.DeadlineExceeded)
	if busy, ok := errors.AsType[*flockctx.BusyError](err); !ok || !busy.Timeout() {
		t.Errorf("error %#v", err)
	}
}

func TestContextThatHadEnded(t *testing.T) {
	path := tempPath(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := semaphore.Acquire(ctx, path, 1, nil)
	wantErr(t, err, context.Canceled)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it made the file: %v", err)
	}
}

// panicky panics in the method that is named, once it is armed.
type panicky struct {
	context.Context
	method string
	armed  <-chan struct{}
}

func (p panicky) check(method string) {
	select {
	case <-p.armed:
		if method == p.method {
			panic("recycled")
		}
	default:
	}
}

func (p panicky) Done() <-chan struct{}       { p.check("Done"); return p.Context.Done() }
func (p panicky) Err() error                  { p.check("Err"); return p.Context.Err() }
func (p panicky) Deadline() (time.Time, bool) { p.check("Deadline"); return p.Context.Deadline() }

func TestPanicOfTheContext(t *testing.T) {
	for _, method := range []string{"Done", "Err"} {
		for _, granted := range []bool{false, true} {
			t.Run(fmt.Sprint(method, granted), func(t *testing.T) {
				path := tempPath(t)
				holder := mustAcquire(t, path, 1)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				armed := make(chan struct{})
				if method == "Done" {
					close(armed)
				}
				caught := make(chan any, 1)
				go func() {
					defer func() { caught <- recover() }()
					semaphore.Acquire(panicky{ctx, method, armed}, path, 1, nil)
				}()
				if method == "Err" {
					time.Sleep(20 * time.Millisecond)
					close(armed)
					if granted {
						holder.Release()
					} else {
						cancel()
					}
				}
				if p := soon(t, caught, "the panic"); p != "recycled" {
					t.Fatalf("caught %v", p)
				}
				holder.Release()
				wantFree(t, path, 1)
				// Nor has it kept the turn.
				must(t, mustAcquire(t, path, 1).Release())
			})
		}
	}
}

func TestKilledHolder(t *testing.T) {
	path := tempPath(t)
	a := startHolder(t, path, 3)
	ch := acquire(t.Context(), path, 3, nil)
	stillWaiting(t, ch)
	a.kill()
	permit(t, ch).Release()
	wantFree(t, path, 3)
}

func TestKilledWaiters(t *testing.T) {
	path := tempPath(t)
	a := startHolder(t, path, 1)
	first, second := startAgent(t, path, 1), startAgent(t, path, 1)
	first.send("acquire")
	second.send("acquire")
	ch := acquire(t.Context(), path, 1, nil)
	stillWaiting(t, ch)
	first.kill()
	second.kill()
	a.want("release", "ok")
	permit(t, ch).Release()
	wantFree(t, path, 1)
}

func TestReleaseTwice(t *testing.T) {
	path := tempPath(t)
	p := mustAcquire(t, path, 1)
	must(t, p.Release())
	again := mustAcquire(t, path, 1)
	wantErr(t, p.Release(), fs.ErrClosed)
	wantErr(t, p.Close(), fs.ErrClosed)
	wantFull(t, path, 1)
	must(t, again.Release())
}

func TestEachCallerHasItsOwnLimit(t *testing.T) {
	path := tempPath(t)
	a := startHolder(t, path, 1) // slot 0
	one := acquire(t.Context(), path, 1, nil)
	stillWaiting(t, one)
	// Who waits for slot 0 is in nobody's way who may have others.
	for range 2 {
		if p := permit(t, acquire(t.Context(), path, 3, nil)); p.Slot() == 0 {
			t.Fatal("slot 0 twice")
		}
	}
	wantFull(t, path, 3)
	three := acquire(t.Context(), path, 3, nil)
	stillWaiting(t, three)
	a.want("release", "ok")
	select {
	case g := <-one:
		must(t, g.err)
		must(t, g.p.Release())
		permit(t, three)
	case g := <-three:
		must(t, g.err)
		must(t, g.p.Release())
		permit(t, one)
	}
}

func TestWhatIsRefused(t *testing.T) {
	path := tempPath(t)
	for _, n := range []int{0, -1} {
		_, err := semaphore.Acquire(t.Context(), path, n, nil)
		wantErr(t, err, syscall.EINVAL)
		_, err = semaphore.TryAcquire(path, n, nil)
		wantErr(t, err, syscall.EINVAL)
	}
	for _, o := range []flockctx.Options{
		{Mode: flockctx.Shared}, {Mechanism: flockctx.OFD}, {Start: 1}, {Length: 1}, {Remove: true}, {Flag: os.O_RDWR | os.O_TRUNC},
	} {
		_, err := semaphore.Acquire(t.Context(), path, 1, &o)
		wantErr(t, err, errors.ErrUnsupported)
		if pe, ok := errors.AsType[*fs.PathError](err); !ok || pe.Path != path {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one of them made the file: %v", err)
	}
	_, err := semaphore.Acquire(t.Context(), path+"/none/x", 1, nil)
	wantErr(t, err, fs.ErrNotExist)
	_, err = semaphore.TryAcquire(path+"/none/x", 1, nil)
	wantErr(t, err, fs.ErrNotExist)
}

// Another program that locks the file, in whatever way but as a whole by fcntl(2), is in
// nobody's way.
func TestLocksOfTheSameFile(t *testing.T) {
	path := tempPath(t)
	l, err := flockctx.Lock(t.Context(), path, nil)
	must(t, err)
	defer l.Close()
	mustAcquire(t, path, 2)
	mustAcquire(t, path, 2)
	wantFull(t, path, 2)
}

func TestManySlots(t *testing.T) {
	path := tempPath(t)
	n := 500
	if runtime.GOOS == "windows" {
		n = 50 // wine has some 1000 descriptors for all its processes
	}
	a := startAgent(t, path, n)
	for range n / 2 {
		a.want("acquire", "ok")
	}
	var permits []*semaphore.Permit
	for range n - n/2 {
		permits = append(permits, mustAcquire(t, path, n))
	}
	wantFull(t, path, n)
	ch := acquire(t.Context(), path, n, nil)
	stillWaiting(t, ch)
	slot := permits[7].Slot()
	must(t, permits[7].Release())
	if p := permit(t, ch); p.Slot() != slot {
		t.Errorf("got slot %d, but %d was released", p.Slot(), slot)
	}
}

func TestInASynctestBubble(t *testing.T) {
	path := tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p, err := semaphore.Acquire(t.Context(), path, 1, nil)
		must(t, err)
		time.AfterFunc(time.Minute, func() { p.Release() })
		p2, err := semaphore.Acquire(t.Context(), path, 1, &flockctx.Options{Wait: flockctx.WaitPoll})
		must(t, err)
		must(t, p2.Release())
		if d := time.Since(began); d < time.Minute || d > time.Minute+time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func TestUnmadePermits(t *testing.T) {
	for _, p := range []*semaphore.Permit{nil, new(semaphore.Permit)} {
		if err := p.Close(); !errors.Is(err, fs.ErrInvalid) {
			t.Error(err)
		}
		if p.Slot() != -1 || p.File() != nil {
			t.Error(p.Slot(), p.File())
		}
	}
}
