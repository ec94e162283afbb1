//go:build !(mips || mipsle || mips64 || mips64le)

package interrupt_test

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flockctx/flockctx/internal/interrupt"
	"golang.org/x/sys/unix"
)

func TestWaitThatIsGranted(t *testing.T) {
	needSignal(t)
	for _, l := range locks {
		fd, release := l.held(t)
		var call interrupt.Call
		done := l.run(&call, fd)
		time.Sleep(time.Millisecond)
		release()
		must(t, soon(t, done, "the grant"))
		call.Fire() // too late: of no effect, and at once
	}
}

func TestFireBeforeRun(t *testing.T) {
	needSignal(t)
	var call interrupt.Call
	call.Fire()
	if !call.Fired() {
		t.Error("Fired is false")
	}
	err := call.Run(func() error { t.Error("the system call was made"); return nil })
	if err != interrupt.ErrInterrupted {
		t.Errorf("got %v", err)
	}
}

// A Fire in steps of 1 µs from the beginning of Run on meets every place on the way into
// the system call.
func TestFireDuringTheEntry(t *testing.T) {
	needSignal(t)
	for _, l := range locks {
		fd, _ := l.held(t)
		for step := range 300 {
			var call interrupt.Call
			begins := make(chan struct{})
			done := make(chan error, 1)
			go func() {
				close(begins)
				done <- call.Run(func() error { return interrupted(l.wait(fd)) })
			}()
			<-begins
			spin(time.Duration(step) * time.Microsecond)
			soon(t, async(call.Fire), "Fire")
			if err := soon(t, done, l.name); err != interrupt.ErrInterrupted {
				t.Fatalf("%s, %d µs: %v", l.name, step, err)
			}
		}
	}
}

// Fire and the grant come together: either may win, and both return.
func TestFireBesideTheGrant(t *testing.T) {
	needSignal(t)
	for range 200 {
		l := locks[0]
		fd, release := l.held(t)
		var call interrupt.Call
		done := l.run(&call, fd)
		fired := async(call.Fire)
		release()
		soon(t, fired, "Fire")
		if err := soon(t, done, "Run"); err != nil && err != interrupt.ErrInterrupted {
			t.Fatal(err)
		}
	}
}

// The end of a context and a Close may both fire, at once and more than once.
func TestSeveralFires(t *testing.T) {
	needSignal(t)
	for _, l := range locks {
		fd, _ := l.held(t)
		for range 100 {
			var call interrupt.Call
			done := l.run(&call, fd)
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(call.Fire)
			}
			if err := soon(t, done, l.name); err != interrupt.ErrInterrupted {
				t.Fatal(err)
			}
			soon(t, async(wg.Wait), "all Fires")
		}
	}
}

// Signals of others interrupt the system call, which is then made again.
func TestForeignSignalsEndNothing(t *testing.T) {
	needSignal(t)
	var call interrupt.Call
	calls := 0
	err := call.Run(func() error {
		if calls++; calls < 5 {
			return interrupt.ErrInterrupted
		}
		return errors.New("the end")
	})
	if err == nil || err.Error() != "the end" || calls != 5 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

// One signal may be lost, or come before the thread is inside: it is sent again. Here a
// call takes the first ones for somebody else's. In a bubble, where no timer fires while
// somebody is in a system call, it is the same.
func TestFireIsRepeated(t *testing.T) {
	needSignal(t)
	for _, l := range locks {
		repeated := func(t *testing.T, fd int) {
			var call interrupt.Call
			lost := 0
			done := make(chan error, 1)
			inside := make(chan struct{})
			go func() {
				done <- call.Run(func() error {
					close(inside)
					for {
						err := interrupted(l.wait(fd))
						if err != interrupt.ErrInterrupted || lost == 3 {
							return err
						}
						lost++
					}
				})
			}()
			<-inside
			call.Fire()
			if err := <-done; err != interrupt.ErrInterrupted || lost != 3 {
				t.Errorf("%s: %v, %d signals lost", l.name, err, lost)
			}
		}
		fd, _ := l.held(t)
		soon(t, async(func() { repeated(t, fd) }), "Fire")
		soon(t, async(func() { synctest.Test(t, func(t *testing.T) { repeated(t, fd) }) }), "Fire in a bubble")
	}
}

// Where the system call does not answer, signals do not come ever faster, nor pile up:
// after 10 doublings of 50 µs one comes in some 50 ms, and then in up to a second.
func TestFireGrowsRare(t *testing.T) {
	needSignal(t)
	var call interrupt.Call
	got := make(chan os.Signal, 1000)
	signal.Notify(got, unix.SIGWINCH)
	defer signal.Stop(got)
	leave := make(chan struct{})
	done := make(chan error, 1)
	inside := make(chan struct{})
	go func() { done <- call.Run(func() error { close(inside); <-leave; return nil }) }()
	<-inside
	fired := async(call.Fire)
	time.Sleep(300 * time.Millisecond)
	close(leave)
	must(t, soon(t, done, "Run"))
	soon(t, fired, "Fire")
	if n := len(got); n == 0 || n > 16 {
		t.Errorf("%d signals in 300 ms", n)
	}
}

// No later system call of the thread sees a signal that was sent to end a wait.
func TestNoStrayEINTR(t *testing.T) {
	needSignal(t)
	l := locks[0]
	fd, _ := l.held(t)
	stray := 0
	soon(t, async(func() {
		// The thread's own mask lets in nothing else, such as the runtime's SIGURG.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var all, old unix.Sigset_t
		for i := range all.Val {
			all.Val[i] = ^all.Val[i]
		}
		must(t, unix.PthreadSigmask(unix.SIG_BLOCK, &all, &old))
		must(t, unix.PthreadSigmask(unix.SIG_UNBLOCK, set(unix.SIGWINCH), nil))
		defer unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
		for i := range 1000 {
			var call interrupt.Call
			fired := async(func() { spin(time.Duration(i%200) * time.Microsecond); call.Fire() })
			if err := call.Run(func() error { return interrupted(l.wait(fd)) }); err != interrupt.ErrInterrupted {
				t.Error(err)
			}
			for range 3 { // poll(2) always fails with EINTR
				if _, err := unix.Poll(nil, 0); err != nil {
					stray++
				}
			}
			ts := unix.NsecToTimespec(int64(30 * time.Microsecond))
			if unix.Nanosleep(&ts, nil) != nil {
				stray++
			}
			<-fired
		}
	}), "a thousand waits")
	if stray > 0 {
		t.Errorf("%d later system calls were interrupted", stray)
	}
}

// When Run returns, a signal that was sent has been delivered: none is pending, though
// the thread blocks it again.
func TestNothingIsPendingAfterRun(t *testing.T) {
	needSignal(t)
	soon(t, async(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		must(t, unix.PthreadSigmask(unix.SIG_BLOCK, set(unix.SIGWINCH), nil))
		defer unix.PthreadSigmask(unix.SIG_UNBLOCK, set(unix.SIGWINCH), nil)
		before := signalMask(t)
		for i := range 500 {
			var call interrupt.Call
			inside := make(chan struct{})
			fired := async(func() { <-inside; call.Fire() })
			call.Run(func() error { close(inside); spin(time.Duration(i%100) * time.Microsecond); return nil })
			var pending unix.Sigset_t
			unix.RawSyscall(unix.SYS_RT_SIGPENDING, ptr(&pending), 8, 0)
			if pending.Val[0]&set(unix.SIGWINCH).Val[0] != 0 {
				t.Error("the signal is pending after Run")
				return
			}
			if after := signalMask(t); after != before {
				t.Errorf("the mask was %v and is %v", before, after)
				return
			}
			<-fired
		}
	}), "the waits")
}

// Who waits takes one thread, and cancelled waits leave none.
func TestWaitsTakeNoMoreThreads(t *testing.T) {
	needSignal(t)
	l := locks[0]
	fd, _ := l.held(t)
	before := threads()
	for range 200 {
		var call interrupt.Call
		done := l.run(&call, fd)
		call.Fire()
		soon(t, done, "Run")
	}
	if n := threads(); n > before+2*runtime.GOMAXPROCS(0)+2 {
		t.Errorf("%d threads before, %d after 200 waits", before, n)
	}
}

// A program may ask for the signal, ignore it, and change its mind: during every wait the
// Fire is felt, whatever came last.
func TestProgramChangesTheSignal(t *testing.T) {
	needSignal(t)
	c := make(chan os.Signal, 1)
	defer signal.Reset(unix.SIGWINCH)
	for name, change := range map[string]func(){
		"Ignore":          func() { signal.Ignore(unix.SIGWINCH) },
		"Notify":          func() { signal.Notify(c, unix.SIGWINCH) },
		"Notify and Stop": func() { signal.Notify(c, unix.SIGWINCH); signal.Stop(c) },
		"Reset":           func() { signal.Reset(unix.SIGWINCH) },
		"Ignore, Notify":  func() { signal.Ignore(unix.SIGWINCH); signal.Notify(c, unix.SIGWINCH) },
	} {
		for _, l := range locks {
			signal.Notify(c, unix.SIGWINCH) // Reset does not undo Ignore
			signal.Stop(c)
			fd, _ := l.held(t)
			var call interrupt.Call
			done := l.run(&call, fd)
			time.Sleep(2 * time.Millisecond) // into the system call
			change()
			soon(t, async(call.Fire), name)
			if err := soon(t, done, name); err != interrupt.ErrInterrupted {
				t.Errorf("%s, %s: %v", name, l.name, err)
			}
		}
	}
}

// A wait is not begun where the program ignores the signal; it is where it asks for it.
func TestPossible(t *testing.T) {
	needSignal(t)
	defer signal.Reset(unix.SIGWINCH)
	signal.Ignore(unix.SIGWINCH)
	if interrupt.Possible() {
		t.Error("possible with the signal ignored")
	}
	var call interrupt.Call
	if err := call.Run(func() error { t.Error("the system call was made"); return nil }); err != interrupt.ErrImpossible {
		t.Errorf("got %v, want ErrImpossible", err)
	}
	soon(t, async(call.Fire), "Fire of a wait that was not begun")
	signal.Notify(make(chan os.Signal, 1), unix.SIGWINCH)
	if !interrupt.Possible() || disposed(t, nil).flags&restart != 0 {
		t.Error("not possible after Notify, or SA_RESTART is set")
	}
}

// Ignoring the runtime's own signal for a while, as a program may do that begins with
// ignoring all, does not keep later waits out of the kernel. (In a process of its own,
// which has not waited yet.)
func TestPossibleAfterAllWereIgnored(t *testing.T) {
	if os.Getenv("INTERRUPT_TEST_CHILD") == "" {
		needSignal(t)
		self, err := os.Executable()
		must(t, err)
		cmd := exec.Command(self, "-test.run=^TestPossibleAfterAllWereIgnored$")
		cmd.Env = append(os.Environ(), "INTERRUPT_TEST_CHILD=1", "GORACE=atexit_sleep_ms=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	for _, ignored := range [][]os.Signal{{unix.SIGURG}, {}} {
		signal.Ignore(ignored...)
		interrupt.Possible()
		all := make(chan os.Signal, 1)
		signal.Notify(all) // Reset does not undo Ignore
		signal.Stop(all)
		if !interrupt.Possible() {
			t.Errorf("no wait is possible any more after Ignore(%v)", ignored)
		}
	}
}

// SA_RESTART is taken off the disposition in a race with the program, which the program
// wins: whatever it set last is in force in the end.
func TestLastWordOnTheSignalIsThePrograms(t *testing.T) {
	needSignal(t)
	words := []disposition{disposed(t, nil), disposed(t, nil), disposed(t, nil)}
	for i := range words {
		words[i].flags |= restart // as the runtime sets it
	}
	words[1].handler, words[2].handler = 1, 0 // SIG_IGN, SIG_DFL
	defer disposed(t, &words[0])
	const rounds = 300
	for round := range rounds {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for {
					interrupt.Possible()
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		var last disposition
		for i := range 200 {
			last = words[(round+i*i)%len(words)]
			disposed(t, &last)
		}
		close(stop)
		wg.Wait()
		if now := disposed(t, nil); now.handler != last.handler {
			t.Fatalf("round %d: the handler is %#x, the program set %#x last", round, now.handler, last.handler)
		}
	}
}

// Whoever asked for the signal sees it, and nothing else happens.
func TestNotifySeesTheSignal(t *testing.T) {
	needSignal(t)
	c := make(chan os.Signal, 1000)
	signal.Notify(c)
	defer signal.Stop(c)
	l := locks[0]
	fd, _ := l.held(t)
	var call interrupt.Call
	done := l.run(&call, fd)
	time.Sleep(2 * time.Millisecond)
	call.Fire()
	soon(t, done, "Run")
	for soon(t, c, "SIGWINCH") != os.Signal(syscall.SIGWINCH) {
	}
}
