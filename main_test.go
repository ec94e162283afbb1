package flockctx_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"go.uber.org/goleak"
)

// The test binary runs itself for tests that need more than one process: with
// commandEnv set it is not a test but the command of that name.
const commandEnv = "FLOCKCTX_TEST_COMMAND"

var commands = map[string]func(args []string) error{}

// registerCommand makes fn a command for runCommand. Use it in a declaration:
//
//	var _ = registerCommand("name", func(args []string) error { … })
func registerCommand(name string, fn func(args []string) error) struct{} {
	if commands[name] != nil {
		panic("two commands named " + name)
	}
	commands[name] = fn
	return struct{}{}
}

func TestMain(m *testing.M) {
	if name := os.Getenv(commandEnv); name != "" {
		fn := commands[name]
		if fn == nil {
			fmt.Fprintln(os.Stderr, "no command named", name)
			os.Exit(2)
		}
		if err := fn(os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	before := countDescriptors()
	code := m.Run()
	if code == 0 {
		code = checkLeaks(before)
	}
	os.Exit(code)
}

// checkLeaks looks for what the whole run left behind.
func checkLeaks(before int) (code int) {
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	// The poller's descriptors come with the first os.File of a pipe.
	if after := countDescriptors(); after > before+3 {
		fmt.Fprintf(os.Stderr, "%d descriptors were open before the tests, %d are after them: %s\n", before, after, listDescriptors())
		code = 1
	}
	// 64 goroutines may wait in the kernel; the runtime keeps their threads.
	if n := countThreads(); n > 64+64+coreThreads() {
		fmt.Fprintf(os.Stderr, "%d threads\n", n)
		code = 1
	}
	return code
}

// coreThreads is how many threads more the runtime may have for the machine's cores:
// those that run goroutines, and as many that wait in system calls beside them.
func coreThreads() int { return 2 * runtime.GOMAXPROCS(0) }

// newCommand returns the command that runs name in a process of its own, which
// wrapper, such as "env --block-signal", may start.
func newCommand(t testing.TB, name string, args []string, wrapper ...string) *exec.Cmd {
	t.Helper()
	return selfCommand(name, args, wrapper...)
}

// selfCommand is newCommand for a command.
func selfCommand(name string, args []string, wrapper ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	argv := append(append(wrapper, self), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	// A race-enabled process otherwise sleeps a second before it ends.
	cmd.Env = append(os.Environ(), commandEnv+"="+name, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	return cmd
}

// patience bounds what should happen soon, on a machine under any load.
const patience = 60 * time.Second

// An agent is another process that uses locks as it is told.
type agent struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

// startAgent starts a process with an unlocked handle on path.
func startAgent(t testing.TB, path string, o flockctx.Options, wrapper ...string) *agent {
	t.Helper()
	a := &agent{t: t}
	start := func() error {
		a.cmd = newCommand(t, "agent", []string{path, fmt.Sprint(int(o.Mode)), fmt.Sprint(int(o.Mechanism)),
			fmt.Sprint(int(o.Wait)), fmt.Sprint(o.Start), fmt.Sprint(o.Length)}, wrapper...)
		var err error
		if a.stdin, err = a.cmd.StdinPipe(); err != nil {
			return err
		}
		stdout, err := a.cmd.StdoutPipe()
		if err != nil {
			return err
		}
		a.out = bufio.NewReader(stdout)
		return a.cmd.Start()
	}
	err := start()
	if runtime.GOOS == "windows" && err != nil && strings.Contains(err.Error(), "Internal error") {
		// wine 8 was seen to fail so, once, while another wine ran beside it.
		err = start()
	}
	must(t, err)
	t.Cleanup(func() {
		a.stdin.Close()
		hung := time.AfterFunc(patience, func() { a.cmd.Process.Kill() })
		defer hung.Stop()
		a.cmd.Wait()
	})
	return a
}

// startHolder starts a process that holds the lock on path.
func startHolder(t testing.TB, path string, o flockctx.Options) *agent {
	t.Helper()
	a := startAgent(t, path, o)
	a.must("lock")
	return a
}

// send gives the agent an order, and answer awaits what came of it.
func (a *agent) send(order string) {
	a.t.Helper()
	if _, err := fmt.Fprintln(a.stdin, order); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) answer() string {
	a.t.Helper()
	s, err := a.out.ReadString('\n')
	if err != nil {
		a.t.Fatalf("the other process ended: %v", err)
	}
	return strings.TrimSpace(s)
}

func (a *agent) do(order string) string {
	a.t.Helper()
	a.send(order)
	return a.answer()
}

// must gives an order that has to succeed.
func (a *agent) must(order string) {
	a.t.Helper()
	if s := a.do(order); s != "ok" {
		a.t.Fatalf("%s in the other process: %s", order, s)
	}
}

var _ = registerCommand("agent", func(args []string) error {
	var mode, mechanism, wait int
	var o flockctx.Options
	for i, p := range []any{&mode, &mechanism, &wait, &o.Start, &o.Length} {
		if _, err := fmt.Sscan(args[i+1], p); err != nil {
			return err
		}
	}
	o.Mode, o.Mechanism, o.Wait = flockctx.Mode(mode), flockctx.Mechanism(mechanism), flockctx.Wait(wait)
	path := args[0]
	ctx := context.Background()
	l := flockctx.New(path, &o)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var err error
		switch order := in.Text(); order {
		case "lock":
			err = l.Lock(ctx)
		case "trylock":
			err = l.TryLock()
		case "unlock":
			err = l.Unlock()
		case "close":
			err = l.Close()
			l = flockctx.New(path, &o)
		case "exclude":
			err = l.Convert(ctx, flockctx.Exclusive)
		default:
			err = fmt.Errorf("order %q", order)
		}
		switch {
		case err == nil:
			fmt.Println("ok")
		case errors.Is(err, flockctx.ErrLocked):
			fmt.Println("locked")
		case errors.Is(err, context.DeadlineExceeded):
			fmt.Println("deadline")
		default:
			fmt.Println(strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
	return nil
})

// eventually waits until cond is true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	limit := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(limit) {
			t.Fatalf("it never happened that %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// soon returns what arrives on ch, which has to be soon.
func soon[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		panic("hang: " + what) // prints all goroutines
	}
}

// async calls fn in a goroutine and returns where its error will arrive.
func async(fn func() error) <-chan error {
	ch := make(chan error, 1)
	go func() { ch <- fn() }()
	return ch
}

// tempPath returns the path of a file that does not exist yet.
func tempPath(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "file.lock")
}

// mustLock locks path, and closes the handle at the end of the test.
func mustLock(t testing.TB, path string, o *flockctx.Options) *flockctx.Flock {
	t.Helper()
	l, err := flockctx.Lock(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// newHandle is New, and closes the handle at the end of the test.
func newHandle(t testing.TB, path string, o *flockctx.Options) *flockctx.Flock {
	t.Helper()
	l := flockctx.New(path, o)
	t.Cleanup(func() { l.Close() })
	return l
}

// must fails the test for an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantLocked and wantFree check from this process, with a handle of its own,
// whether the lock on path can be had in mode m.
func wantLocked(t testing.TB, path string, o flockctx.Options) {
	t.Helper()
	l, err := flockctx.TryLock(path, &o)
	if err == nil {
		l.Close()
		t.Fatalf("got the lock (%v), want it to be taken", o.Mode)
	}
	if !errors.Is(err, flockctx.ErrLocked) {
		t.Fatalf("got %v, want ErrLocked", err)
	}
}

func wantFree(t testing.TB, path string, o flockctx.Options) {
	t.Helper()
	l, err := flockctx.TryLock(path, &o)
	if err != nil {
		t.Fatalf("want the lock to be free: %v", err)
	}
	must(t, l.Close())
}

// wantErr fails unless err matches all of targets.
func wantErr(t testing.TB, err error, targets ...error) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %v", targets)
	}
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("got %v (%T), which does not match %v", err, err, target)
		}
	}
}

// wantText fails unless err says all of parts.
func wantText(t testing.TB, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
}

// mechanisms returns those that this system has.
func mechanisms() []flockctx.Mechanism {
	switch runtime.GOOS {
	case "linux", "darwin":
		return []flockctx.Mechanism{flockctx.BSD, flockctx.OFD}
	}
	return []flockctx.Mechanism{flockctx.BSD}
}

// errInvalid is what the system says of arguments that it cannot take.
var errInvalid error = syscall.EINVAL

// collect has the collector run, and the cleanups that it finds.
func collect() {
	for range 3 {
		runtime.GC()
		time.Sleep(100 * time.Microsecond)
	}
}

// recovered calls fn and returns what it panicked with, or nil.
func recovered(fn func()) (p any) {
	defer func() { p = recover() }()
	fn()
	return nil
}
