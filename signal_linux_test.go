//go:build linux

package flockctx_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// The end of a wait in the kernel, whatever becomes of the signal. What changes signals
// for the whole process runs in a process of its own. (internal/interrupt has the tests of
// the signal itself.)

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

// toggled is for how long a host of TestHostThatTogglesSignals does so.
var toggled = flag.Duration("toggled", 20*time.Second, "for how long hosts toggle signals, in TestHostThatTogglesSignals")

// A host program may change the disposition of signals at any time, and all the time:
// waits end, and nothing crashes.
func TestHostThatTogglesSignals(t *testing.T) {
	limit := *toggled
	if testing.Short() {
		limit = min(limit, 2*time.Second)
	}
	for name := range togglers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := newCommand(t, "toggle", []string{tempPath(t), name, limit.String()})
			must(t, cmd.Start())
			hung := time.AfterFunc(limit+2*patience, func() { cmd.Process.Signal(unix.SIGQUIT) })
			defer hung.Stop()
			must(t, cmd.Wait())
		})
	}
}

// togglers are the signals that a host toggles; none are all.
var togglers = map[string][]os.Signal{"SIGWINCH": {unix.SIGWINCH}, "SIGURG": {unix.SIGURG}, "both": {unix.SIGURG, unix.SIGWINCH}, "all": nil}

var _ = registerCommand("toggle", func(args []string) error {
	path, signals := args[0], togglers[args[1]]
	limit, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	release, err := holdRaw(path)
	if err != nil {
		return err
	}
	defer release()
	runtime.GOMAXPROCS(max(4, runtime.NumCPU()))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		c := make(chan os.Signal, 100)
		for i := 0; ; i++ {
			signal.Ignore(signals...)
			signal.Notify(c, signals...)
			if i%3 == 0 {
				signal.Reset(signals...)
			}
			signal.Stop(c)
			select {
			case <-stop:
				return
			default:
			}
			if i%2 == 0 {
				time.Sleep(20 * time.Microsecond)
			}
		}
	})
	for end := time.Now().Add(limit); time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Microsecond)
		_, err := flockctx.Lock(ctx, path, inKernel())
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	return nil
})

// The queue of signals, which all processes of a user share, may be full.
func TestNoRoomForSignals(t *testing.T) { run(t, "sigpending", []string{tempPath(t)}) }

var _ = registerCommand("sigpending", func(args []string) error {
	for _, n := range []uint64{1, 0} {
		if err := unix.Setrlimit(unix.RLIMIT_SIGPENDING, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return err
		}
		if err := interrupted(args[0], 10); err != nil {
			return fmt.Errorf("limit %d: %v", n, err)
		}
	}
	return nil
})

// Where nothing can end a wait in the kernel it is not begun: Lock polls, whatever its
// Wait says, and keeps its deadline. Sandboxes forbid the calls in these ways.
func TestNoUsableSignal(t *testing.T) {
	for name, nr := range map[string]int{"rt_sigaction": unix.SYS_RT_SIGACTION, "tgkill": unix.SYS_TGKILL,
		"ppoll": unix.SYS_PPOLL} {
		for _, errno := range []unix.Errno{unix.EPERM, unix.ENOSYS, unix.EAGAIN, unix.EINVAL} {
			t.Run(name+","+errno.Error(), func(t *testing.T) {
				run(t, "no-signal", []string{tempPath(t), strconv.Itoa(nr), strconv.Itoa(int(errno))})
			})
		}
	}
}

var _ = registerCommand("no-signal", func(args []string) error {
	path := args[0]
	nr, _ := strconv.Atoi(args[1])
	errno, _ := strconv.Atoi(args[2])
	release, err := holdRaw(path)
	if err != nil {
		return err
	}
	defer release()
	if err := answer(uintptr(nr), 0, unix.Errno(errno)); err != nil {
		return err
	}
	for _, wait := range waits {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		_, err = flockctx.Lock(ctx, path, &flockctx.Options{Wait: wait})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("%v: %v", wait, err)
		}
	}
	done := make(chan error, 1)
	go func() { _, err := flockctx.Lock(context.Background(), path, inKernel()); done <- err }()
	if err := waitUntil("it polls", func() bool { return flockctx.Pollers() == 1 && flockctx.Blocked() == 0 }); err != nil {
		return err
	}
	release()
	return <-done
})

// A filter that comes while a wait is under way keeps the signal from being sent: later
// waits poll, and this one ends as soon as the signal is let through again or the lock
// comes.
func TestSignalForbiddenDuringTheWait(t *testing.T) {
	run(t, "forbidden", []string{tempPath(t)})
}

var _ = registerCommand("forbidden", func(args []string) error {
	release, err := holdRaw(args[0])
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { _, err := flockctx.Lock(ctx, args[0], inKernel()); done <- err }()
	if err := waitUntil("it waits", func() bool { return flockctx.Blocked() == 1 }); err != nil {
		return err
	}
	time.Sleep(5 * time.Millisecond) // into the call
	if err := answer(unix.SYS_TGKILL, 0, unix.EPERM); err != nil {
		return err
	}
	cancel()
	time.Sleep(20 * time.Millisecond)
	if err := interrupted(filepath.Join(filepath.Dir(args[0]), "other"), 2); err != nil {
		return fmt.Errorf("a later wait: %v", err)
	}
	release()
	if err := <-done; !errors.Is(err, context.Canceled) {
		return err
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

// A cancelled Lock returns when its sender of signals has: no goroutine is left, not even
// for a moment.
func TestSenderHasGoneWhenLockReturns(t *testing.T) {
	path := tempPath(t)
	hold(t, path)
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		done := async(func() error {
			_, err := flockctx.Lock(ctx, path, inKernel())
			if n := goroutinesIn("interrupt.(*Call).Fire"); n > 0 {
				t.Errorf("%d senders after the return", n)
			}
			return err
		})
		eventually(t, "it waits", func() bool { return flockctx.Blocked() == 1 })
		cancel()
		wantErr(t, soon(t, done, "Lock after cancel"), context.Canceled)
	}
}

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

// A trap: EINTR surfaces from Lock when a C library installed a handler without
// SA_RESTART.
func TestForeignSignalsDoNotSurface(t *testing.T) {
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
