//go:build linux

package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// The facts that waiting inside the kernel rests on. What changes signals for the
// whole process runs in a process of its own.

// hold takes the lock on path as another process would: on an open file that the
// package does not know. It returns how to release it.
func hold(t testing.TB, path string) (release func()) {
	t.Helper()
	release, err := holdRaw(path)
	must(t, err)
	t.Cleanup(release)
	return release
}

func holdRaw(path string) (release func(), err error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { unix.Close(fd) }), nil
}

// run runs a command in a process of its own, started by wrapper.
func run(t *testing.T, name string, args []string, wrapper ...string) {
	t.Helper()
	cmd := newCommand(t, name, args, wrapper...)
	must(t, cmd.Start())
	hung := time.AfterFunc(patience, func() { cmd.Process.Signal(unix.SIGQUIT) })
	defer hung.Stop()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// waitUntil is eventually for a command.
func waitUntil(what string, cond func() bool) error {
	for end := time.Now().Add(patience / 2); !cond(); {
		if time.Now().After(end) {
			return fmt.Errorf("never: %s; %d in the kernel, %d poll", what, flockctx.Blocked(), flockctx.Pollers())
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// inKernel are options for a wait that must be in the kernel, whatever file system
// the tests run on: with WaitAuto it polls where the file system is not known.
func inKernel() *flockctx.Options { return &flockctx.Options{Wait: flockctx.WaitBlock} }

// interrupted waits in the kernel for path, which is held, n times until a deadline,
// and says what is wrong. It does so in both mechanisms.
func interrupted(path string, n int) error {
	release, err := holdRaw(path)
	if err != nil {
		return err
	}
	defer release()
	ofd := unix.Flock_t{Type: unix.F_WRLCK}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.FcntlFlock(uintptr(fd), 37, &ofd); err != nil { // F_OFD_SETLK
		return err
	}
	for i := range n {
		o := &flockctx.Options{Wait: flockctx.WaitBlock, Mechanism: flockctx.Mechanism(i % 2)}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		done := make(chan error, 1)
		go func() { _, err := flockctx.Lock(ctx, path, o); done <- err }()
		var err error
		select {
		case err = <-done:
		case <-time.After(patience / 2):
			err = errors.New("hangs")
		}
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("wait %d for %v: %v", i, o.Mechanism, err)
		}
	}
	return nil
}

var _ = registerCommand("interrupted", func(args []string) error { return interrupted(args[0], 20) })

// needEnv skips the test where env(1) cannot block signals for what it starts: GNU's
// can since 8.31, others cannot.
func needEnv(t *testing.T) {
	t.Helper()
	if err := exec.Command("env", "--block-signal", "true").Run(); err != nil {
		t.Skipf("SKIP: %s: env(1) has no --block-signal: %v", t.Name(), err)
	}
}

// A process started with the signal blocked keeps it blocked in every thread.
func TestCancellationWithAllSignalsBlocked(t *testing.T) {
	needEnv(t)
	run(t, "interrupted", []string{tempPath(t)}, "env", "--block-signal")
}

func TestCancellationWithAllSignalsIgnored(t *testing.T) {
	needEnv(t)
	run(t, "interrupted", []string{tempPath(t)}, "env", "--ignore-signal")
}

// The thread gets back the mask that it had.
func TestSignalMaskIsRestored(t *testing.T) {
	needEnv(t)
	run(t, "mask", []string{tempPath(t)}, "env", "--block-signal")
}

var _ = registerCommand("mask", func(args []string) error {
	runtime.LockOSThread()
	mask := func() string {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", unix.Gettid()))
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "SigBlk:") {
				return line
			}
		}
		return "no mask"
	}
	release, err := holdRaw(args[0])
	if err != nil {
		return err
	}
	before := mask()
	if v, err := strconv.ParseUint(strings.Fields(before)[1], 16, 64); err != nil || v>>(unix.SIGWINCH-1)&1 != 1 {
		return fmt.Errorf("SIGWINCH is not blocked at the beginning: %q", before)
	}
	for i := range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*time.Millisecond)
		_, err := flockctx.Lock(ctx, args[0], inKernel())
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if after := mask(); after != before {
			return fmt.Errorf("the mask was %q and is %q", before, after)
		}
	}
	time.AfterFunc(5*time.Millisecond, release)
	if _, err := flockctx.Lock(context.Background(), args[0], inKernel()); err != nil {
		return err
	}
	if after := mask(); after != before {
		return fmt.Errorf("after a grant the mask was %q and is %q", before, after)
	}
	return nil
})

// signal.Ignore and then signal.Notify reinstall SA_RESTART: on the signal in use,
// and on every other one, before the first wait, between waits and during one.
func TestCancellationAfterIgnoreAndNotify(t *testing.T) {
	for _, when := range []string{"before", "between", "during"} {
		t.Run(when, func(t *testing.T) { run(t, "ignore-notify", []string{tempPath(t), when}) })
	}
}

var _ = registerCommand("ignore-notify", func(args []string) error {
	path, when := args[0], args[1]
	ch := make(chan os.Signal, 1000)
	all := []os.Signal{unix.SIGWINCH, unix.SIGIO}
	for s := 33; s <= 64; s++ {
		if s != 34 {
			all = append(all, syscall.Signal(s))
		}
	}
	change := func(i int) {
		switch i % 4 {
		case 0:
			signal.Ignore(all...)
		case 1:
			signal.Notify(ch, all...)
		case 2:
			signal.Reset(all...)
		case 3:
			signal.Ignore(all...)
			signal.Notify(ch, all...)
		}
	}
	switch when {
	case "before":
		change(3)
		return interrupted(path, 10)
	case "between":
		for i := range 12 {
			if err := interrupted(path, 2); err != nil {
				return fmt.Errorf("after change %d: %v", i, err)
			}
			change(i)
		}
		return interrupted(path, 2)
	}
	release, err := holdRaw(path)
	if err != nil {
		return err
	}
	defer release()
	for i := range 8 {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { _, err := flockctx.Lock(ctx, path, inKernel()); done <- err }()
		if err := waitUntil("it waits", func() bool { return flockctx.Blocked() == 1 }); err != nil {
			cancel()
			return err
		}
		time.Sleep(2 * time.Millisecond) // into the call
		change(i)
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				return err
			}
		case <-time.After(patience / 2):
			return fmt.Errorf("hangs after change %d", i)
		}
	}
	return nil
})

// The signal can land before the thread is inside the call: then another one is
// sent. Deadlines from 0 to 200 µs hit every place on the way.
func TestSignalBeforeTheCall(t *testing.T) {
	path := tempPath(t)
	hold(t, path)
	for range 1500 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(200))*time.Microsecond)
		done := async(func() error { _, err := flockctx.Lock(ctx, path, inKernel()); return err })
		wantErr(t, soon(t, done, "Lock with a short deadline"), context.DeadlineExceeded)
		cancel()
	}
}

// No later call of the thread sees a signal that was sent to end a wait.
func TestNoStrayEINTR(t *testing.T) {
	// Go's own preemption by signals would interrupt the calls as well.
	run(t, "stray", []string{tempPath(t)}, "env", "GODEBUG=asyncpreemptoff=1")
}

var _ = registerCommand("stray", func(args []string) error {
	release, err := holdRaw(args[0])
	if err != nil {
		return err
	}
	defer release()
	var fails sync.Map
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for range 700 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(300))*time.Microsecond)
				_, err := flockctx.Lock(ctx, args[0], &flockctx.Options{Wait: flockctx.WaitBlock})
				cancel()
				if !errors.Is(err, context.DeadlineExceeded) {
					fails.Store(fmt.Sprint(err), nil)
				}
				for range 3 { // poll(2) always fails with EINTR
					if _, err := unix.Poll(nil, 0); err != nil {
						fails.Store("a later call: "+err.Error(), nil)
					}
				}
				ts := unix.NsecToTimespec(int64(30 * time.Microsecond))
				if err := unix.Nanosleep(&ts, nil); err != nil {
					fails.Store("a later call: "+err.Error(), nil)
				}
			}
		})
	}
	wg.Wait()
	err = nil
	fails.Range(func(k, _ any) bool { err = errors.Join(err, errors.New(k.(string))); return true })
	return err
})

// clearRestart takes SA_RESTART off a signal's handler, as a C library may.
func clearRestart(sig unix.Signal) error {
	var act [32]uintptr // struct sigaction: the handler, the flags, and more
	for _, set := range []bool{false, true} {
		in, out := uintptr(0), uintptr(unsafe.Pointer(&act))
		if set {
			act[1] &^= 0x10000000
			in, out = out, in
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), in, out, 8, 0, 0); errno != 0 {
			return errno
		}
	}
	return nil
}

// Trap 7: EINTR surfaces from Lock when a C library installed a handler without
// SA_RESTART.
func TestTrap7ForeignSignalsDoNotSurface(t *testing.T) {
	run(t, "eintr", []string{tempPath(t)})
}

var _ = registerCommand("eintr", func(args []string) error {
	path := args[0]
	signal.Notify(make(chan os.Signal, 1), unix.SIGUSR1)
	if err := clearRestart(unix.SIGUSR1); err != nil {
		return err
	}
	for i := range 4 {
		mechanism := flockctx.Mechanism(i % 2)
		l := flockctx.New(path, &flockctx.Options{Mechanism: mechanism, Wait: flockctx.WaitBlock})
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		if mechanism == flockctx.BSD {
			err = unix.Flock(fd, unix.LOCK_EX)
		} else {
			err = unix.FcntlFlock(uintptr(fd), 37, &unix.Flock_t{Type: unix.F_WRLCK})
		}
		if err != nil {
			return err
		}
		done := make(chan error, 1)
		go func() { done <- l.Lock(context.Background()) }()
		if err := waitUntil("it waits", func() bool { return flockctx.Blocked() == 1 }); err != nil {
			return err
		}
		for range 200 {
			tasks, err := os.ReadDir("/proc/self/task")
			if err != nil {
				return err
			}
			for _, task := range tasks {
				tid, _ := strconv.Atoi(task.Name())
				unix.Tgkill(unix.Getpid(), tid, unix.SIGUSR1)
			}
		}
		select {
		case err := <-done:
			return fmt.Errorf("Lock returned: %v", err)
		default:
		}
		unix.Close(fd)
		if err := <-done; err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
})

// Trap 8: 200 blocking waiters took 199 extra threads. Goroutines that wait for one
// file take one.
func TestTrap8WaitersTakeNoThreads(t *testing.T) {
	path := tempPath(t)
	release := hold(t, path)
	before := countThreads()
	ctx, cancel := context.WithCancel(t.Context())
	var waiting []<-chan error
	for range 200 {
		waiting = append(waiting, async(func() error { _, err := flockctx.Lock(ctx, path, nil); return err }))
	}
	eventually(t, "all wait", func() bool {
		return flockctx.WaitingOutside() == 1 && flockctx.Waiters(path, flockctx.BSD) == 199
	})
	if n := countThreads() - before; n > 40+coreThreads() { // those that opened the files
		t.Errorf("%d more threads", n)
	}
	cancel()
	for _, ch := range waiting {
		wantErr(t, soon(t, ch, "Lock after cancel"), context.Canceled)
	}
	release()
}

// Past the cap of waits in the kernel, a Lock polls, and takes a place there when
// one is free.
func TestCapOfWaitsInTheKernel(t *testing.T) {
	run(t, "cap", []string{t.TempDir()}) // for the threads, which stay
}

var _ = registerCommand("cap", func(args []string) error {
	const more = 30
	n := flockctx.MaxBlocked() + more
	var releases []func()
	paths := make([]string, n)
	for i := range n {
		paths[i] = filepath.Join(args[0], fmt.Sprint(i))
		release, err := holdRaw(paths[i])
		if err != nil {
			return err
		}
		releases = append(releases, release)
	}
	done := make([]chan error, n)
	cancels := make([]context.CancelFunc, n)
	start := func(i int) {
		var ctx context.Context
		ctx, cancels[i] = context.WithCancel(context.Background())
		done[i] = make(chan error, 1)
		go func() { _, err := flockctx.Lock(ctx, paths[i], inKernel()); done[i] <- err }()
	}
	for i := range flockctx.MaxBlocked() {
		start(i)
	}
	if err := waitUntil("all places are taken", func() bool { return flockctx.Blocked() == flockctx.MaxBlocked() }); err != nil {
		return err
	}
	for i := flockctx.MaxBlocked(); i < n; i++ {
		start(i)
	}
	if err := waitUntil("the rest polls", func() bool { return flockctx.Pollers() == more }); err != nil {
		return err
	}
	if threads := countThreads(); threads > flockctx.MaxBlocked()+50+coreThreads() {
		return fmt.Errorf("%d threads", threads)
	}
	// A poller is granted and cancelled like any other.
	releases[n-1]()
	if err := <-done[n-1]; err != nil {
		return err
	}
	cancels[n-2]()
	if err := <-done[n-2]; !errors.Is(err, context.Canceled) {
		return err
	}
	// Places that become free are taken.
	for i := range 10 {
		cancels[i]()
		if err := <-done[i]; !errors.Is(err, context.Canceled) {
			return err
		}
	}
	if err := waitUntil("pollers take the free places", func() bool { return flockctx.Pollers() == more-2-10 }); err != nil {
		return err
	}
	for i := 10; i < n-2; i++ {
		releases[i]()
		if err := <-done[i]; err != nil {
			return err
		}
	}
	return nil
})

// Trap 10: a descriptor without close-on-exec: a child keeps the lock after Unlock.
func TestTrap10DescriptorsAreCloseOnExec(t *testing.T) {
	dir := t.TempDir()
	mustLock(t, filepath.Join(dir, "bare"), nil)
	file := mustLock(t, filepath.Join(dir, "file"), nil)
	_ = file.File().Fd()
	mustLock(t, filepath.Join(dir, "flag"), &flockctx.Options{Flag: os.O_RDWR | os.O_CREATE})
	out, err := exec.Command("ls", "-l", "/proc/self/fd").Output()
	must(t, err)
	if strings.Contains(string(out), dir) {
		t.Errorf("a child inherited:\n%s", out)
	}
}

// Unlock and Close release the lock though a child inherited the descriptor.
func TestReleaseThoughAChildInheritedTheDescriptor(t *testing.T) {
	for _, mechanism := range mechanisms() {
		for _, how := range []string{"Unlock", "Close"} {
			t.Run(mechanism.String()+","+how, func(t *testing.T) {
				path := tempPath(t)
				o := flockctx.Options{Mechanism: mechanism}
				l := mustLock(t, path, &o)
				child := exec.Command("cat")
				stdin, err := child.StdinPipe()
				must(t, err)
				child.ExtraFiles = []*os.File{l.File()}
				must(t, child.Start())
				defer child.Wait()
				defer stdin.Close()
				wantLocked(t, path, o)
				if how == "Unlock" {
					must(t, l.Unlock())
				} else {
					must(t, l.Close())
				}
				wantFree(t, path, o)
				startHolder(t, path, o)
			})
		}
	}
}

// Between fork and exec a child of another goroutine shares every open file: a mere
// close would leave the file locked until that exec.
func TestNoSpuriousErrLockedWhileOthersFork(t *testing.T) {
	for _, mechanism := range mechanisms() {
		path := tempPath(t)
		o := flockctx.Options{Mechanism: mechanism}
		stop := make(chan struct{})
		var forks atomic.Int32
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						exec.Command("true").Run()
						forks.Add(1)
					}
				}
			})
		}
		for i := 0; forks.Load() < 200; i++ {
			l, err := flockctx.TryLock(path, &o)
			if err != nil {
				t.Errorf("%v, round %d: %v", mechanism, i, err)
				break
			}
			if i%2 == 0 {
				l.File()
			}
			must(t, l.Close())
		}
		close(stop)
		wg.Wait()
	}
}

// flock(1) and this package exclude each other.
func TestFlockProgram(t *testing.T) {
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("SKIP: no flock(1)")
	}
	path := tempPath(t)
	try := func(option string) bool {
		t.Helper()
		err := exec.Command("flock", "-n", option, path, "true").Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
			t.Fatal(err)
		}
		return err == nil
	}
	l := mustLock(t, path, nil)
	if try("-x") || try("-s") {
		t.Error("flock(1) got a lock beside an exclusive one")
	}
	must(t, l.Convert(t.Context(), flockctx.Shared))
	if try("-x") || !try("-s") {
		t.Error("flock(1) beside a shared lock")
	}
	must(t, l.Unlock())
	if !try("-x") {
		t.Error("flock(1) does not get a lock that is free")
	}
	cmd := exec.Command("flock", path, "cat")
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	eventually(t, "flock(1) has the lock", func() bool {
		err := l.TryLock()
		if err == nil {
			must(t, l.Unlock())
		}
		return errors.Is(err, flockctx.ErrLocked)
	})
	done := async(func() error { return l.Lock(t.Context()) })
	eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
	stdin.Close()
	must(t, cmd.Wait())
	must(t, soon(t, done, "Lock after flock(1) ended"))
}

// OFD locks and POSIX record locks of other processes exclude each other.
func TestPOSIXLocksOfOtherProcesses(t *testing.T) {
	path := tempPath(t)
	o := &flockctx.Options{Mechanism: flockctx.OFD, Start: 100, Length: 10}
	l := mustLock(t, path, o)
	try := func(start int64) string {
		t.Helper()
		out, err := newCommand(t, "posix", []string{path, fmt.Sprint(start), "try"}).Output()
		must(t, err)
		return strings.TrimSpace(string(out))
	}
	if got := try(105); got != "locked" {
		t.Errorf("POSIX lock in the range: %s", got)
	}
	if got := try(110); got != "ok" {
		t.Errorf("POSIX lock behind the range: %s", got)
	}
	must(t, l.Unlock())
	if got := try(105); got != "ok" {
		t.Errorf("POSIX lock in the range after Unlock: %s", got)
	}

	cmd := newCommand(t, "posix", []string{path, "109", "hold"})
	stdin, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	b := make([]byte, 3)
	_, err = out.Read(b)
	must(t, err)
	wantErr(t, l.TryLock(), flockctx.ErrLocked)
	done := async(func() error { return l.Lock(t.Context()) })
	eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
	stdin.Close()
	must(t, soon(t, done, "Lock after the POSIX lock is gone"))
	must(t, cmd.Wait())
}

var _ = registerCommand("posix", func(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	start, _ := strconv.ParseInt(args[1], 10, 64)
	err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: start, Len: 1})
	if err == unix.EAGAIN || err == unix.EACCES {
		fmt.Println("locked")
		return nil
	}
	fmt.Println("ok")
	if args[2] == "hold" {
		os.Stdin.Read(make([]byte, 1))
	}
	return err
})

// Trap 11 with files of one number on two mounts.
func TestTrap11SameInodeOnTwoMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: mounting needs root")
	}
	type file struct {
		path string
		dev  uint64
	}
	seen := make(map[uint64][]file)
	for range 2 {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Skip("SKIP: cannot mount a tmpfs: ", err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		for i := range 5 {
			path := filepath.Join(dir, fmt.Sprint(i))
			must(t, os.WriteFile(path, nil, 0o600))
			var st unix.Stat_t
			must(t, unix.Stat(path, &st))
			seen[st.Ino] = append(seen[st.Ino], file{path, uint64(st.Dev)})
		}
	}
	checked := 0
	for _, files := range seen {
		if len(files) < 2 {
			continue
		}
		checked++
		a, err := flockctx.TryLock(files[0].path, nil)
		must(t, err)
		b, err := flockctx.TryLock(files[1].path, nil)
		if err != nil {
			t.Fatalf("two files with one inode number: %v", err)
		}
		s, err := flockctx.LockAll(t.Context(), []string{files[0].path + "x", files[1].path + "x"}, nil)
		must(t, err)
		if n := len(s.Files()); n != 2 {
			t.Errorf("%d files in the set", n)
		}
		must(t, s.Close())
		must(t, b.Close())
		must(t, a.Close())
	}
	if checked == 0 {
		t.Skip("SKIP: the mounts number their files differently")
	}
}
