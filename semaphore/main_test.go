package semaphore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/semaphore"
	"go.uber.org/goleak"
)

// The test binary runs itself for tests that need more than one process: with
// commandEnv set it is not a test but the command of that name.
const commandEnv = "SEMAPHORE_TEST_COMMAND"

var commands = map[string]func(args []string) error{"agent": agentMain}

// register makes fn a command for newCommand.
func register(name string, fn func(args []string) error) struct{} {
	commands[name] = fn
	return struct{}{}
}

func TestMain(m *testing.M) {
	if name := os.Getenv(commandEnv); name != "" {
		if err := commands[name](os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	before := len(descriptors())
	code := m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	// What waits were made by is kept for a moment. The poller's descriptors come with
	// the first os.File of a pipe.
	for end := time.Now().Add(patience); len(descriptors()) > before+3; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			fmt.Fprintf(os.Stderr, "%d descriptors were open before the tests, after them these: %q\n", before, descriptors())
			code = 1
			break
		}
	}
	os.Exit(code)
}

// descriptors returns what this process has open, where the system tells.
func descriptors() (open []string) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		open = append(open, target)
	}
	return open
}

func newCommand(t testing.TB, name string, args []string, wrapper ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	argv := append(append(wrapper, self), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), commandEnv+"="+name, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	return cmd
}

// patience bounds what should happen soon, on a machine under any load.
const patience = 60 * time.Second

// An agent is another process that uses semaphores as it is told.
type agent struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

func startAgent(t testing.TB, path string, n int, wrapper ...string) *agent {
	t.Helper()
	return start(t, newCommand(t, "agent", []string{path, strconv.Itoa(n)}, wrapper...))
}

// startCommand starts a process that is no ordinary agent.
func startCommand(t testing.TB, name string, args ...string) *agent {
	t.Helper()
	return start(t, newCommand(t, name, args))
}

func start(t testing.TB, cmd *exec.Cmd) *agent {
	t.Helper()
	a := &agent{t: t, cmd: cmd}
	var err error
	a.stdin, err = a.cmd.StdinPipe()
	must(t, err)
	stdout, err := a.cmd.StdoutPipe()
	must(t, err)
	a.out = bufio.NewReader(stdout)
	must(t, a.cmd.Start())
	t.Cleanup(a.end)
	return a
}

// startHolder starts a process that has all slots.
func startHolder(t testing.TB, path string, n int) *agent {
	t.Helper()
	a := startAgent(t, path, n)
	for range n {
		a.want("acquire", "ok")
	}
	return a
}

func (a *agent) end() {
	a.stdin.Close()
	hung := time.AfterFunc(patience, func() { a.cmd.Process.Kill() })
	defer hung.Stop()
	a.cmd.Wait()
}

func (a *agent) kill() {
	a.cmd.Process.Kill()
	a.cmd.Wait()
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
	hung := time.AfterFunc(patience, func() { a.cmd.Process.Kill() })
	defer hung.Stop()
	s, err := a.out.ReadString('\n')
	if err != nil {
		a.t.Fatalf("the other process ended: %v", err)
	}
	return strings.TrimSpace(s)
}

// want gives an order and checks how the answer begins.
func (a *agent) want(order, prefix string) string {
	a.t.Helper()
	a.send(order)
	s := a.answer()
	if !strings.HasPrefix(s, prefix) {
		a.t.Fatalf("%s in the other process: %s, want %s", order, s, prefix)
	}
	return s
}

// agentMain does what its standard input says: acquire (answers "ok SLOT"), try, release
// (the permit that it got last), or child (starts a process that has inherited that
// permit's file, and answers "ok PID").
func agentMain(args []string) error {
	path := args[0]
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var permits []*semaphore.Permit
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var p *semaphore.Permit
		switch order := in.Text(); order {
		case "acquire":
			p, err = semaphore.Acquire(context.Background(), path, n, nil)
		case "try":
			p, err = semaphore.TryAcquire(path, n, nil)
		case "release":
			err = permits[len(permits)-1].Release()
			permits = permits[:len(permits)-1]
		case "child":
			cmd := exec.Command("sleep", "3600")
			cmd.ExtraFiles = []*os.File{permits[len(permits)-1].File()}
			if err = cmd.Start(); err == nil {
				fmt.Println("ok", cmd.Process.Pid)
				continue
			}
		}
		switch {
		case errors.Is(err, flockctx.ErrLocked):
			fmt.Println("locked")
		case err != nil:
			fmt.Println(err)
		case p != nil:
			permits = append(permits, p)
			fmt.Println("ok", p.Slot())
		default:
			fmt.Println("ok")
		}
	}
	return nil
}

// child starts a child of the agent that has inherited its permit's file.
func (a *agent) child() *os.Process {
	a.t.Helper()
	pid, err := strconv.Atoi(strings.TrimPrefix(a.want("child", "ok "), "ok "))
	must(a.t, err)
	p, err := os.FindProcess(pid)
	must(a.t, err)
	a.t.Cleanup(func() { p.Kill() })
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
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

func tempPath(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "jobs.slots")
}

// mustAcquire takes a slot, and releases it at the end of the test.
func mustAcquire(t testing.TB, path string, n int) *semaphore.Permit {
	t.Helper()
	p, err := semaphore.Acquire(t.Context(), path, n, nil)
	must(t, err)
	t.Cleanup(func() { p.Release() })
	return p
}

// wantFull checks that no slot can be had.
func wantFull(t testing.TB, path string, n int) {
	t.Helper()
	p, err := semaphore.TryAcquire(path, n, nil)
	if err == nil {
		p.Release()
		t.Fatalf("got slot %d of %d, want them to be taken", p.Slot(), n)
	}
	wantErr(t, err, flockctx.ErrLocked)
}

// wantFree checks that all slots can be had, at once, and nobody has a turn.
func wantFree(t testing.TB, path string, n int) {
	t.Helper()
	seen := make(map[int]bool)
	for range n {
		p, err := semaphore.TryAcquire(path, n, nil)
		if err != nil {
			t.Fatalf("after %d of %d slots: %v", len(seen), n, err)
		}
		defer p.Release()
		if seen[p.Slot()] || p.Slot() < 0 || p.Slot() >= n {
			t.Fatalf("slot %d of %d, after %v", p.Slot(), n, seen)
		}
		seen[p.Slot()] = true
	}
	wantFull(t, path, n)
}

// A grant is the outcome of an Acquire.
type grant struct {
	p   *semaphore.Permit
	err error
}

// acquire calls Acquire in a goroutine.
func acquire(ctx context.Context, path string, n int, o *flockctx.Options) <-chan grant {
	ch := make(chan grant, 1)
	go func() {
		p, err := semaphore.Acquire(ctx, path, n, o)
		ch <- grant{p, err}
	}()
	return ch
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

// permit returns the permit that has to arrive on ch soon.
func permit(t testing.TB, ch <-chan grant) *semaphore.Permit {
	t.Helper()
	g := soon(t, ch, "no slot")
	must(t, g.err)
	t.Cleanup(func() { g.p.Release() })
	return g.p
}

// stillWaiting fails where something arrives on ch within a moment.
func stillWaiting(t testing.TB, ch <-chan grant) {
	t.Helper()
	select {
	case g := <-ch:
		if g.err == nil {
			g.p.Release()
		}
		t.Fatalf("got %v, want it to wait", g)
	case <-time.After(50 * time.Millisecond):
	}
}
