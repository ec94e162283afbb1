package semaphore_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/semaphore"
	"golang.org/x/sys/unix"
)

// fastest returns the shortest time of some that once took to give a slot to a waiter. A
// waiter that no bell has told looks after two seconds.
func fastest(t *testing.T, once func() time.Duration) {
	t.Helper()
	best := time.Hour
	for range 5 {
		if best = min(best, once()); best < rest/2 {
			return
		}
	}
	t.Errorf("the fastest of 5 took %v: no bell rang", best)
}

const rest = 2 * time.Second

func TestKilledHolderRingsTheBell(t *testing.T) {
	fastest(t, func() time.Duration {
		path := tempPath(t)
		a := startHolder(t, path, 2)
		ch := acquire(t.Context(), path, 2, nil)
		stillWaiting(t, ch)
		began := time.Now()
		a.kill()
		permit(t, ch)
		return time.Since(began)
	})
}

func TestReleaseRingsTheBellThoughAChildHasTheFile(t *testing.T) {
	fastest(t, func() time.Duration {
		path := tempPath(t)
		a := startHolder(t, path, 1)
		a.child()
		ch := acquire(t.Context(), path, 1, nil)
		stillWaiting(t, ch)
		began := time.Now()
		a.want("release", "ok")
		permit(t, ch)
		return time.Since(began)
	})
}

func TestInheritedSlotOutlivesItsHolder(t *testing.T) {
	path := tempPath(t)
	a := startHolder(t, path, 1)
	child := a.child()
	a.kill()
	wantFull(t, path, 1)
	ch := acquire(t.Context(), path, 1, nil)
	stillWaiting(t, ch)
	must(t, child.Kill())
	permit(t, ch)
}

// Who waits in a queue of processes is served in the order in which it came.
func TestFirstComeFirstServed(t *testing.T) {
	path := tempPath(t)
	holder := mustAcquire(t, path, 1)
	var agents []*agent
	for i := range 6 {
		a := startAgent(t, path, 1)
		agents = append(agents, a)
		a.send("acquire")
		waits(t, path, i)
	}
	must(t, holder.Release())
	for i, a := range agents {
		if s := a.answer(); s != "ok 0" {
			t.Fatal(s)
		}
		for _, other := range agents[i+1:] {
			other.t = t
			if n := other.out.Buffered(); n > 0 {
				t.Fatal("another one was served too")
			}
		}
		a.want("release", "ok")
	}
}

// waits waits until a process has the turn, and n more wait for it.
func waits(t *testing.T, path string, n int) {
	t.Helper()
	limit := time.Now().Add(patience)
	for {
		hs, err := flockctx.Holders(path)
		must(t, err)
		turn, waiting := false, 0
		for _, h := range hs {
			slot, ok := semaphore.SlotOf(h)
			switch {
			case !ok || slot >= 0:
			case h.Waiting:
				waiting++
			default:
				turn = true
			}
		}
		if turn && waiting == n {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%d wait: %+v", waiting, hs)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSlotOf(t *testing.T) {
	path := tempPath(t)
	l, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Mechanism: flockctx.OFD, Start: 7, Length: 1})
	must(t, err)
	defer l.Close()
	a := startHolder(t, path, 3)
	hs, err := flockctx.Holders(path)
	must(t, err)
	pids := make(map[int]int)
	for _, h := range hs {
		if slot, ok := semaphore.SlotOf(h); ok {
			if slot < 0 {
				t.Errorf("somebody waits: %+v", h)
			}
			pids[slot] = h.PID
		}
	}
	if len(pids) != 3 || pids[0] != a.cmd.Process.Pid || pids[1] != pids[0] || pids[2] != pids[0] {
		t.Errorf("slots of processes %v, want three of %d", pids, a.cmd.Process.Pid)
	}
}

func TestFileReplacedUnderAWaiter(t *testing.T) {
	fastest(t, func() time.Duration {
		path := tempPath(t)
		mustAcquire(t, path, 1)
		ch := acquire(t.Context(), path, 1, nil)
		stillWaiting(t, ch)
		began := time.Now()
		must(t, os.Remove(path))
		p := permit(t, ch)
		d := time.Since(began)
		// It has the slot of the file that the path names now.
		wantFull(t, path, 1)
		must(t, p.Release())
		return d
	})
}

// A relative path means the directory of the call, also where the wait starts again.
func TestChdirUnderAWaiter(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	mustAcquire(t, "x", 1)
	ch := acquire(t.Context(), "x", 1, nil)
	stillWaiting(t, ch)
	t.Chdir(t.TempDir())
	must(t, os.Remove(filepath.Join(dir, "x")))
	permit(t, ch)
	wantFull(t, filepath.Join(dir, "x"), 1)
	if _, err := os.Stat("x"); err == nil {
		t.Error("it has made a file in the new directory")
	}
}

// The kernel tells that a dying process closes its file before it drops the lock: here it
// does so a little later, and nothing tells of that.
func TestBellBeforeTheSlotIsFree(t *testing.T) {
	fastest(t, func() time.Duration {
		path := tempPath(t)
		l, err := flockctx.Lock(t.Context(), path, &flockctx.Options{
			Mechanism: flockctx.OFD, Start: semaphore.FirstSlot, Length: 1})
		must(t, err)
		defer l.Close()
		ch := acquire(t.Context(), path, 1, nil)
		stillWaiting(t, ch)
		began := time.Now()
		wantFull(t, path, 1) // which opens and closes the file
		time.Sleep(3 * time.Millisecond)
		must(t, l.Unlock()) // which leaves it open
		permit(t, ch)
		return time.Since(began)
	})
}

// An event that tells of no free slot is no reason to stop listening.
func TestBellInVain(t *testing.T) {
	fastest(t, func() time.Duration {
		path := tempPath(t)
		p := mustAcquire(t, path, 1)
		ch := acquire(t.Context(), path, 1, nil)
		stillWaiting(t, ch)
		for range 3 {
			wantFull(t, path, 1)
			stillWaiting(t, ch)
		}
		began := time.Now()
		must(t, p.Release())
		permit(t, ch)
		return time.Since(began)
	})
}

// A process takes some inotify instances of those that its user has. Who gets none polls.
func TestMoreQueuesThanBells(t *testing.T) {
	dir := t.TempDir()
	const queues = 40
	var held []*semaphore.Permit
	var chs []<-chan grant
	for i := range queues {
		path := filepath.Join(dir, strconv.Itoa(i))
		held = append(held, mustAcquire(t, path, 1))
		chs = append(chs, acquire(t.Context(), path, 1, nil))
	}
	for i := range queues {
		waits(t, filepath.Join(dir, strconv.Itoa(i)), 0)
	}
	time.Sleep(20 * time.Millisecond)
	if n := instances(); n == 0 || n > 16 {
		t.Errorf("%d inotify instances", n)
	}
	for i, p := range held {
		must(t, p.Release())
		must(t, permit(t, chs[i]).Release())
	}
	limit := time.Now().Add(patience)
	for instances() > 0 {
		if time.Now().After(limit) {
			t.Fatalf("%d inotify instances are left", instances())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// instances returns how many inotify instances this process has.
func instances() (n int) {
	for _, target := range descriptors() {
		if strings.Contains(target, "inotify") {
			n++
		}
	}
	return n
}

// Many that wait in one process take one thread, one instance, and next to no time.
func TestManyWaiters(t *testing.T) {
	path := tempPath(t)
	startHolder(t, path, 4)
	a := startCommand(t, "waiters", path, "200")
	f := strings.Fields(a.answer())
	threads, _ := strconv.Atoi(f[0])
	bells, _ := strconv.Atoi(f[1])
	cpu, _ := time.ParseDuration(f[2])
	t.Logf("200 waiters: %d threads, %d inotify instances, %v of processor time in 3 s", threads, bells, cpu)
	if threads > 100 { // each that waits would have its own; on a busy machine some begin at once
		t.Errorf("%d threads", threads)
	}
	if bells != 1 {
		t.Errorf("%d inotify instances", bells)
	}
	if cpu > 3*time.Second/100 {
		t.Errorf("waiting took %v of 3 s", cpu)
	}
	if s := a.answer(); s != "ended" {
		t.Error(s)
	}
}

var _ = register("waiters", func(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error)
	for range n {
		go func() {
			_, err := semaphore.Acquire(ctx, args[0], 4, nil)
			done <- err
		}()
	}
	time.Sleep(2 * time.Second) // they queue
	before := cpuTime()
	time.Sleep(3 * time.Second)
	used := cpuTime() - before
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	fmt.Println(len(tasks), instances(), used)
	cancel()
	for range n {
		if err := <-done; err == nil {
			return fmt.Errorf("one got a slot")
		}
	}
	fmt.Println("ended")
	return nil
})

func cpuTime() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		panic(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// While nothing happens, no system call of a waiter has a timeout of less than a second:
// neither of the one that waits for a slot, nor of those that wait for their turn.
func TestWaitingSetsNoShortTimers(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("SKIP: strace is not installed")
	}
	path := tempPath(t)
	startHolder(t, path, 2)
	waiters := []*agent{startAgent(t, path, 2), startAgent(t, path, 2), startAgent(t, path, 2)}
	var args []string
	for i, a := range waiters {
		a.send("acquire")
		waits(t, path, i)
		args = append(args, "-p", strconv.Itoa(a.cmd.Process.Pid))
	}
	time.Sleep(100 * time.Millisecond)
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, append([]string{"-f", "-tt", "-o", out}, args...)...)
	must(t, cmd.Start())
	time.Sleep(4 * time.Second)
	cmd.Process.Signal(os.Interrupt)
	cmd.Wait()
	trace, err := os.ReadFile(out)
	must(t, err)
	if !strings.Contains(string(trace), "epoll_pwait") {
		t.Skipf("SKIP: strace cannot attach: %s", trace)
	}
	calls := strings.Count(string(trace), "\n")
	t.Logf("%d system calls in 4 s", calls)
	if calls > 300 {
		t.Errorf("%d system calls in 4 s", calls)
	}
	var shorts []string
	for _, line := range strings.Split(string(trace), "\n") {
		if short(line) {
			shorts = append(shorts, line)
		}
	}
	// The rest of a longer one is short, where strace interrupts it.
	if len(shorts) > 2 {
		t.Errorf("timers of less than a second:\n%s", strings.Join(shorts, "\n"))
	}
	for _, a := range waiters {
		a.kill()
	}
}

var timeouts = []struct {
	re   *regexp.Regexp
	unit time.Duration
}{
	{regexp.MustCompile(`epoll_pwait\(.*, 128, (\d+), `), time.Millisecond},
	{regexp.MustCompile(`futex\(.*\{tv_sec=0, tv_nsec=(\d+)\}`), time.Nanosecond},
	{regexp.MustCompile(`nanosleep\(.*\{tv_sec=0, tv_nsec=(\d+)\}, `), time.Nanosecond},
}

// short reports whether a line of strace has a call that waits for less than a second.
// The naps of Go's monitor thread, after something was done, are of less than 10 ms: of
// those there must not be many.
func short(line string) bool {
	for _, to := range timeouts {
		m := to.re.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		n, _ := strconv.ParseInt(m[1], 10, 64)
		d := time.Duration(n) * to.unit
		return d > 10*time.Millisecond && d < 990*time.Millisecond
	}
	return false
}
