package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// A terminal is the master side of a pseudo-terminal, and what came out of it.
type terminal struct {
	master, slave *os.File
	mu            sync.Mutex
	output        bytes.Buffer
}

func newTerminal(t *testing.T, columns uint16) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIP: no pseudo-terminal: %v", err)
	}
	// Not (*os.File).Fd, which would make reading it uninterruptible.
	rc, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	rc.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
		if err == nil {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIP: no pseudo-terminal: %v", err)
	}
	x := &terminal{master: master, slave: slave}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			x.mu.Lock()
			x.output.Write(b[:n])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		slave.Close()
		master.Close()
	})
	return x
}

func (x *terminal) raw() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.output.String()
}

// screen returns the lines as they look: of a terminal that knows carriage return
// and "erase to the end of the line".
func (x *terminal) screen() []string {
	lines := [][]rune{nil}
	column := 0
	raw := []rune(x.raw())
	for i := 0; i < len(raw); i++ {
		line := &lines[len(lines)-1]
		switch {
		case raw[i] == '\r':
			column = 0
		case raw[i] == '\n':
			lines = append(lines, nil)
			column = 0
		case strings.HasPrefix(string(raw[i:min(i+3, len(raw))]), "\x1b[K"):
			*line = (*line)[:min(column, len(*line))]
			i += 2
		default:
			for len(*line) <= column {
				*line = append(*line, ' ')
			}
			(*line)[column] = raw[i]
			column++
		}
	}
	var s []string
	for _, l := range lines {
		s = append(s, string(l))
	}
	return s
}

// holder runs a command that holds f, and waits until it does.
func holder(t *testing.T, f string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(flockctxPath, append([]string{"-F", f}, args...)...)
	if _, err := cmd.StdinPipe(); err != nil { // for one that reads until it is killed
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	eventually(t, "the lock is held", func() bool {
		return exec.Command(flockctxPath, "-n", "-E", "9", f, "true").Run() != nil
	})
	return cmd
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen that %s", what)
		}
	}
}

func TestWaitLineOnTerminal(t *testing.T) {
	t.Parallel()
	f := filepath.Join(t.TempDir(), "x.lock")
	h := holder(t, f, "sleep", "3333")
	x := newTerminal(t, 200)
	cmd := exec.Command(flockctxPath, f, "echo", "done")
	cmd.Stdout, cmd.Stderr = x.slave, x.slave
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// It keeps quiet for a second.
	shown := func() bool { return x.raw() != "" }
	eventually(t, "the line is shown", shown)
	if d := time.Since(start); d < time.Second {
		t.Errorf("it was shown after %v: %q", d, x.raw())
	}
	want := fmt.Sprintf("waiting for %s: held by pid %d (sleep 3333) since ", f, h.Process.Pid)
	eventually(t, "the line is rewritten", func() bool { return strings.Count(x.raw(), want) >= 3 })
	lines := x.screen()
	if len(lines) != 1 || !strings.HasPrefix(lines[0], want) || !strings.HasSuffix(lines[0], " s") {
		t.Errorf("on the screen: %q; want one line that begins with %q", lines, want)
	}
	h.Process.Kill()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the command is done", func() bool { return strings.Contains(x.raw(), "done") })
	if s := strings.Join(x.screen(), "\n"); s != "done\n" {
		t.Errorf("afterwards the screen has %q; want only what the command printed", s)
	}
}

// A terminal that was stopped, as by Ctrl-S, takes no output. Neither the command nor
// a signal waits for that.
func TestStoppedTerminal(t *testing.T) {
	flow := func(x *terminal, action int) {
		t.Helper()
		if err := unix.IoctlSetInt(int(x.slave.Fd()), unix.TCXONC, action); err != nil {
			t.Fatal(err)
		}
	}
	for name, end := range map[string]func(holder, waiter *exec.Cmd){
		"grant":  func(holder, _ *exec.Cmd) { holder.Process.Kill() },
		"signal": func(_, waiter *exec.Cmd) { waiter.Process.Signal(syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			f, ran := filepath.Join(dir, "x.lock"), filepath.Join(dir, "ran")
			h := holder(t, f, "sleep", "3333")
			x := newTerminal(t, 132)
			cmd := exec.Command(flockctxPath, f, "touch", ran)
			cmd.Stderr = x.slave
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the line is shown", func() bool { return x.raw() != "" })
			flow(x, unix.TCOOFF)
			defer flow(x, unix.TCOON)
			eventually(t, "it hangs in writing the line", func() bool {
				tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", cmd.Process.Pid))
				return slices.ContainsFunc(tasks, func(name string) bool {
					b, _ := os.ReadFile(name)
					return strings.HasPrefix(string(b), fmt.Sprintf("%d 0x2 ", unix.SYS_WRITE))
				})
			})
			start := time.Now()
			end(h, cmd)
			done := make(chan error)
			go func() { done <- cmd.Wait() }()
			select {
			case err := <-done:
				t.Logf("it ended after %v", time.Since(start))
				if _, gone := os.Stat(ran); (name == "grant") != (err == nil && gone == nil) {
					t.Errorf("%v, %v", err, gone)
				}
			case <-time.After(20 * time.Second):
				cmd.Process.Kill()
				t.Error("it waits for the terminal")
				<-done
			}
		})
	}
}

// A job in the background does not write over the prompt of the shell.
func TestBackgroundJob(t *testing.T) {
	t.Parallel()
	f := filepath.Join(t.TempDir(), "x.lock")
	holder(t, f, "sleep", "3333")
	x := newTerminal(t, 132)
	cmd := exec.Command("bash", "-c", `set -m; $0 -w 2.3 $1 true & wait; echo; echo -n foreground; $0 -w 2.3 $1 true`, flockctxPath, f)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = x.slave, x.slave, x.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	eventually(t, "the line is gone", func() bool { return strings.HasSuffix(x.raw(), "\x1b[K") })
	background, foreground, _ := strings.Cut(x.raw(), "foreground")
	if strings.Contains(background, "waiting") || !strings.Contains(foreground, "waiting") {
		t.Errorf("in the background %q, in the foreground %q; want the line there only", background, foreground)
	}
}

func TestWaitLineIsCut(t *testing.T) {
	t.Parallel()
	f := filepath.Join(t.TempDir(), "x.lock")
	holder(t, f, "sh", "-c", "read x; : "+strings.Repeat("long ", 100)+"\x1b[31m\r\n")
	x := newTerminal(t, 132)
	cmd := exec.Command(flockctxPath, f, "true")
	cmd.Stderr = x.slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the line is rewritten", func() bool { return strings.Count(x.raw(), "waiting") >= 2 })
	lines := x.screen()
	if n := len([]rune(lines[0])); len(lines) != 1 || n >= 132 || !strings.HasSuffix(lines[0], " s") || strings.Contains(x.raw(), "[31m") && strings.Contains(x.raw(), "\x1b[31m") {
		t.Errorf("on the screen: %q, %d characters", lines, n)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	eventually(t, "the line is gone", func() bool { return strings.Join(x.screen(), "") == "" })
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGTERM {
		t.Errorf("ended by %v; want SIGTERM", cmd.ProcessState)
	}
}

// On a narrow terminal the path gives way to who holds the lock.
func TestWaitLineOnNarrowTerminal(t *testing.T) {
	t.Parallel()
	f := filepath.Join(t.TempDir(), strings.Repeat("deep/", 20), "x.lock")
	if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
		t.Fatal(err)
	}
	h := holder(t, f, "sleep", "3333")
	for _, columns := range []uint16{40, 80, 100} {
		x := newTerminal(t, columns)
		cmd := exec.Command(flockctxPath, f, "true")
		cmd.Stderr = x.slave
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the line is shown", func() bool { return strings.Contains(x.raw(), "\x1b[K") })
		want := fmt.Sprintf("held by pid %d (sleep", h.Process.Pid)
		lines := x.screen()
		if len(lines) != 1 || !strings.Contains(lines[0], want) || !strings.HasSuffix(lines[0], " s") || columns >= 80 && !strings.Contains(lines[0], "x.lock: ") {
			t.Errorf("%d columns: %q; want one line with %q", columns, lines, want)
		}
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}
}

func TestQuiet(t *testing.T) {
	t.Parallel()
	f := filepath.Join(t.TempDir(), "x.lock")
	holder(t, f, "sleep", "3333")
	x := newTerminal(t, 80)
	cmd := exec.Command(flockctxPath, "--quiet", "-w", "1.5", f, "true")
	cmd.Stderr = x.slave
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v; want status 1", err)
	}
	if x.raw() != "" {
		t.Errorf("on the terminal: %q", x.raw())
	}
}

func TestRedirectedOutput(t *testing.T) {
	t.Parallel()
	f := filepath.Join(t.TempDir(), "x.lock")
	h := holder(t, f, "sh", "-c", "read x; : \x1b[31m \r \a")
	held := fmt.Sprintf("pid %d (sh -c read x; : ?[31m ? ?)", h.Process.Pid)
	run := func(until string, args ...string) string {
		name := filepath.Join(t.TempDir(), "stderr")
		stderr, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer stderr.Close()
		cmd := exec.Command(flockctxPath, append(args, f, "true")...)
		cmd.Stderr = stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if until != "" {
			eventually(t, "it says who is in the way", func() bool {
				b, _ := os.ReadFile(name)
				return strings.HasSuffix(string(b), until)
			})
			cmd.Process.Signal(syscall.SIGTERM)
		}
		cmd.Wait()
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.IndexFunc(b, func(r rune) bool { return r != '\n' && unicode.IsControl(r) }); i >= 0 {
			t.Errorf("control character in %q", b)
		}
		return string(b)
	}
	waiting := "flockctx: waiting for " + f + ": held by " + held + "\n"
	if got := run(waiting, "--verbose"); got != waiting {
		t.Errorf("--verbose: %q; want %q", got, waiting)
	}
	timeout := "flockctx: timeout while waiting to get lock on " + f + ": held by " + held + "\n"
	if got := run("", "--verbose", "-w", "0.5"); strings.TrimPrefix(got, waiting) != timeout {
		t.Errorf("--verbose -w: %q; want %q", got, timeout)
	}
	if got := run("", "-w", "1.5"); got != "" {
		t.Errorf("without --verbose: %q", got)
	}
	out, _ := exec.Command(flockctxPath, "-n", "--verbose", f, "true").CombinedOutput()
	if want := "flockctx: failed to get lock on " + f + ": held by pid "; !strings.HasPrefix(string(out), want) || !strings.Contains(string(out), fmt.Sprint(h.Process.Pid)) {
		t.Errorf("-n: %q; want %q and the process", out, want)
	}
}
