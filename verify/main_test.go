//go:build linux

package verify

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	seedFlag    = flag.Uint64("seed", 1, "seed of the faults and operations")
	secondsFlag = flag.Int("seconds", 20, "how long TestStress runs")
	roundFlag   = flag.Int("round", -1, "run only this round of TestStress, 20 times")
	fairFlag    = flag.Bool("fair", false, "have goroutines stand in line in each round of TestStress, where they are killed and stopped")
	fullFlag    = flag.Bool("full", false, "run the root package's tests on each file system too")
	controlFlag = flag.Int("control", 8, "how many seconds at most the control may take to show its bugs")
)

// helpers are the programs that the test binary is when it is run again.
var helpers = map[string]func(config json.RawMessage) error{}

const helperVar = "FLOCKCTX_VERIFY_HELPER"

func TestMain(m *testing.M) {
	if name := os.Getenv(helperVar); name != "" {
		os.Unsetenv(helperVar)
		run := helpers[name]
		if run == nil {
			fmt.Fprintln(os.Stderr, "no helper", name)
			os.Exit(64)
		}
		if err := run(json.RawMessage(os.Args[1])); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	// What the runtime and os/exec open once stays open: open it before anything
	// is counted.
	exec.Command("/bin/true").Run()
	exec.Command("/bin/true").Output()
	os.Exit(m.Run())
}

// A helper is this test binary running one of helpers in another process.
type helper struct {
	name   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  chan string // of its standard output; closed at its end
	stderr lockedBuffer

	once sync.Once
	err  error
	gone chan struct{} // closed when it was reaped
	end  int64         // monotonic time of that
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// startHelper starts the helper of that name. prefix, which may be empty, is a
// command that runs it, as unshare(1) does.
func startHelper(t testing.TB, prefix []string, name string, config any) *helper {
	t.Helper()
	c, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(append([]string(nil), prefix...), exe, string(c))
	h := &helper{name: name, gone: make(chan struct{}), lines: make(chan string, 1024)}
	h.cmd = exec.Command(args[0], args[1:]...)
	h.cmd.Env = append(os.Environ(), helperVar+"="+name, "GOTRACEBACK=all")
	h.cmd.Stderr = &h.stderr
	// A test that dies must not leave helpers behind that lock for ever.
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	go func() {
		// Pdeathsig is bound to the thread that forked.
		runtime.LockOSThread()
		started <- h.cmd.Start()
		if h.cmd.Process == nil {
			return
		}
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			h.lines <- s.Text()
		}
		h.err = h.cmd.Wait()
		h.end = monotonic()
		close(h.lines)
		close(h.gone)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.kill)
	return h
}

func (h *helper) pid() int { return h.cmd.Process.Pid }

func (h *helper) say(line string) { fmt.Fprintln(h.stdin, line) }

// hear returns the next line of the helper's output.
func (h *helper) hear(t testing.TB) string {
	t.Helper()
	select {
	case line, ok := <-h.lines:
		if !ok {
			<-h.gone
			t.Fatalf("%s ended: %v\n%s", h.name, h.err, h.stderr.String())
		}
		return line
	case <-time.After(time.Minute):
		h.cmd.Process.Signal(syscall.SIGQUIT)
		select {
		case <-h.gone:
		case <-time.After(10 * time.Second):
		}
		t.Fatalf("%s says nothing for a minute\n%s", h.name, h.stderr.String())
	}
	panic("unreachable")
}

func (h *helper) expect(t testing.TB, want string) {
	t.Helper()
	if got := h.hear(t); got != want {
		t.Fatalf("%s says %q, want %q\n%s", h.name, got, want, h.stderr.String())
	}
}

// kill ends the helper and returns when the kernel has closed its files.
func (h *helper) kill() {
	h.once.Do(func() {
		h.cmd.Process.Signal(syscall.SIGKILL)
		h.stdin.Close()
		go func() {
			for range h.lines {
			}
		}()
	})
	<-h.gone
}

// monotonic reads the clock that all processes of the machine share.
func monotonic() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// usage counts what a library could leave behind.
type usage struct {
	Goroutines, Descriptors, Threads int
	Waiting                          int // threads in flock(2) or fcntl(2)
}

func measure() usage {
	u := usage{Goroutines: runtime.NumGoroutine()}
	fds, _ := os.ReadDir("/proc/self/fd")
	u.Descriptors = len(fds)
	tasks, _ := filepath.Glob("/proc/self/task/[0-9]*")
	u.Threads = len(tasks)
	for _, task := range tasks {
		call, _ := os.ReadFile(task + "/syscall")
		var nr int
		if _, err := fmt.Sscan(string(call), &nr); err == nil && (nr == unix.SYS_FLOCK || nr == unix.SYS_FCNTL) {
			u.Waiting++
		}
	}
	return u
}

// leftBehind compares with an earlier measurement, once what is about to end has
// had the time to, and says what is more than before. Go keeps the threads that it
// once made, so those are compared with limit, and with those that it may have for
// the machine's cores.
func leftBehind(before usage, limit int) error {
	limit += 2 * runtime.GOMAXPROCS(0)
	var now usage
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		now = measure()
		ok := now.Goroutines <= before.Goroutines && now.Descriptors <= before.Descriptors && now.Waiting == 0 && now.Threads <= limit
		if ok {
			return nil
		}
		if time.Now().After(end) {
			break
		}
		runtime.GC() // to run cleanups of forgotten handles
	}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	links := ""
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		l, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		links += fd.Name() + " " + l + "\n"
	}
	return fmt.Errorf("left behind: %+v, before %+v, at most %d threads\n%s\n%s", now, before, limit, links, stacks)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("SKIP: %s needs root", t.Name())
	}
}

func needCommands(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIP: %s needs %s", t.Name(), name)
		}
	}
}
