package lockertest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx/locker"
)

const (
	roleEnv = "LOCKERTEST_ROLE"
	specEnv = "LOCKERTEST_SPEC"
	nameEnv = "LOCKERTEST_NAME" // of the lock, for those who are not told on stdin
)

var mainCalled bool

// Main is called by TestMain of a package whose tests call Run. In the child processes
// that the suite starts from the test binary it opens a Locker with Faults.Spec, and
// does not return; otherwise it runs the tests.
func Main(m *testing.M, open func(spec string) (locker.Locker, error)) {
	if role := os.Getenv(roleEnv); role != "" {
		l, err := open(os.Getenv(specEnv))
		if err == nil {
			switch role {
			case "holder":
				err = holder(l)
			case "counter":
				err = counter(l)
			case "leader":
				err = leader(l)
			}
		}
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	mainCalled = true
	os.Exit(m.Run())
}

// holder obeys "lock NAME", "unlock" and "put VALUE" on stdin, and says on stdout what
// happens: "locked TOKEN", "ended CAUSE", "unlocked ERR", "put ERR".
func holder(l locker.Locker) error {
	var out sync.Mutex
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	res := dialResource()
	in := bufio.NewScanner(os.Stdin)
	var h locker.Held
	var err error
	for in.Scan() {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		switch verb {
		case "lock":
			if h, err = l.Lock(context.Background(), arg, locker.Exclusive); err != nil {
				return err
			}
			context.AfterFunc(h.Context(), func() { say("ended %s", classify(context.Cause(h.Context()))) })
			t, _ := h.Token()
			say("locked %d", t.N)
		case "unlock":
			say("unlocked %s", classify(h.Unlock(context.Background())))
		case "put":
			t, _ := h.Token()
			say("put %s", res.ask("put %s %d", arg, t.N))
		}
	}
	return in.Err()
}

// counter raises the resource's counter under the lock of name, until its stdin ends. It
// says "lost" on stdout when it has lost the lock, or may have.
func counter(l locker.Locker) error {
	name := os.Getenv(nameEnv)
	ctx := untilEOF()
	res := dialResource()
	for ctx.Err() == nil {
		err := locker.Do(ctx, l, name, locker.Exclusive, func(ctx context.Context) error {
			n := tokenOf(ctx)
			v, err := strconv.Atoi(res.ask("get %d", n))
			if err != nil {
				return nil // refused: another one came later
			}
			if ctx.Err() != nil {
				return nil
			}
			res.ask("put %d %d", v+1, n)
			return nil
		})
		switch {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, locker.ErrLost), errors.Is(err, locker.ErrUnsure):
			fmt.Println("lost")
		default:
			return err
		}
	}
	return nil
}

// untilEOF returns a context that ends with stdin.
func untilEOF() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() { io.Copy(io.Discard, os.Stdin); cancel() }()
	return ctx
}

// tokenOf returns the token of the lock from Do or Lead, or 0.
func tokenOf(ctx context.Context) uint64 {
	h, _ := locker.HeldFrom(ctx)
	t, _ := h.Token()
	return t.N
}

func classify(err error) string {
	switch {
	case err == nil:
		return "nil"
	case errors.Is(err, locker.ErrLost):
		return "lost"
	case errors.Is(err, locker.ErrReleased):
		return "released"
	case errors.Is(err, locker.ErrUnsure):
		return "unsure"
	}
	return err.Error()
}

// A child is a process of the test binary with a role.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser

	mu     sync.Mutex // guards lines and done
	lines  []string
	done   bool
	change chan struct{} // receives after each change
}

// spawn starts a child. It is killed at the end of the test.
func spawn(t testing.TB, role, spec string, res *resource, env ...string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), roleEnv+"="+role, specEnv+"="+spec, resourceEnv+"="+res.addr()), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: cmd, in: in, change: make(chan struct{}, 1)}
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			c.add(s.Text(), false)
		}
		c.add("", true)
	}()
	t.Cleanup(c.kill)
	return c
}

func (c *child) add(line string, done bool) {
	c.mu.Lock()
	if done {
		c.done = true
	} else {
		c.lines = append(c.lines, line)
	}
	c.mu.Unlock()
	select {
	case c.change <- struct{}{}:
	default:
	}
}

// hasLost reports whether a counter has lost the lock.
func (c *child) hasLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.lines, "lost")
}

func (c *child) say(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.in, format+"\n", args...); err != nil {
		c.t.Fatal(err)
	}
}

// expect waits for a line that begins with verb and returns the rest of it.
func (c *child) expect(verb string) string {
	c.t.Helper()
	limit := time.After(patience)
	for {
		rest, ok := c.take(verb)
		if ok {
			return rest
		}
		c.mu.Lock()
		lines, done := c.lines, c.done
		c.mu.Unlock()
		if done {
			c.t.Fatalf("the child ended without %q, it said %q", verb, lines)
		}
		select {
		case <-c.change:
		case <-limit:
			c.t.Fatalf("no %q from the child, it said %q", verb, lines)
		}
	}
}

// take returns what expect would, if that has been said.
func (c *child) take(verb string) (rest string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, line := range c.lines {
		if v, rest, _ := strings.Cut(line, " "); v == verb {
			c.lines = append(c.lines[:i], c.lines[i+1:]...)
			return rest, true
		}
	}
	return "", false
}

func (c *child) freeze() {
	c.t.Helper()
	if err := freeze(c.cmd.Process); err != nil {
		c.t.Fatal(err)
	}
}

func (c *child) thaw() {
	c.t.Helper()
	if err := thaw(c.cmd.Process); err != nil {
		c.t.Fatal(err)
	}
}

func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		c.cmd.Process.Kill()
		c.cmd.Wait()
	}
}
