//go:build linux

package verify

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// A peer is another process that locks what it is told to.
type peer struct {
	*helper
	t    testing.TB
	path string // of the last order
}

// An order is what a peer is told: one lock at a time for each name.
type order struct {
	Do      string // lock, try, unlock, close, convert, holders
	Path    string
	Name    string // of the handle, where there are several
	Opts    flockctx.Options
	Timeout time.Duration // 0: none
}

// An answer is what came of it.
type answer struct {
	Result    string // ok, busy, ended, error
	Error     string
	Errno     syscall.Errno
	Began, At int64 // monotonic time when the call was made and returned
	Holders   []flockctx.Holder
	PID       int // of the peer, in its own namespace
}

func init() {
	helpers["peer"] = func(json.RawMessage) error {
		handles := map[string]*flockctx.Flock{}
		fmt.Println("ready")
		s := bufio.NewScanner(os.Stdin)
		for s.Scan() {
			var o order
			if err := json.Unmarshal(s.Bytes(), &o); err != nil {
				return err
			}
			a := carryOut(o, handles)
			b, err := json.Marshal(a)
			if err != nil {
				return err
			}
			fmt.Println(string(b))
		}
		return nil
	}
}

func carryOut(o order, handles map[string]*flockctx.Flock) answer {
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if o.Timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, o.Timeout)
	}
	defer cancel()
	a := answer{Began: monotonic(), PID: os.Getpid()}
	var err error
	l := handles[o.Name]
	switch o.Do {
	case "lock":
		l, err = flockctx.Lock(ctx, o.Path, &o.Opts)
	case "try":
		l, err = flockctx.TryLock(o.Path, &o.Opts)
	case "unlock":
		err = l.Unlock()
	case "close":
		err = l.Close()
	case "convert":
		err = l.Convert(ctx, o.Opts.Mode)
	case "holders":
		a.Holders, err = flockctx.Holders(o.Path)
	}
	a.At = monotonic()
	if l != nil {
		handles[o.Name] = l
	}
	a.Result = outcome(err)
	if err != nil {
		a.Error = err.Error()
		errors.As(err, &a.Errno)
	}
	return a
}

// outcome classifies an error by the contract: busy, ended, a *fs.PathError, or a
// breach of it.
func outcome(err error) string {
	var busy *flockctx.BusyError
	var path *fs.PathError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &busy) && errors.Is(err, flockctx.ErrLocked):
		return "busy"
	case errors.As(err, &busy) && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)):
		return "ended"
	case errors.Is(err, errors.ErrUnsupported) && errors.As(err, &path):
		return "unsupported"
	case errors.As(err, &path):
		return "error"
	}
	return "no error of the contract: " + err.Error()
}

func newPeer(t testing.TB, prefix ...string) *peer {
	t.Helper()
	p := &peer{helper: startHelper(t, prefix, "peer", nil), t: t}
	p.expect(t, "ready")
	return p
}

// start gives an order and does not wait for the answer.
func (p *peer) start(o order) {
	b, err := json.Marshal(o)
	if err != nil {
		p.t.Fatal(err)
	}
	p.path = o.Path
	p.say(string(b))
}

func (p *peer) answer() answer {
	p.t.Helper()
	var a answer
	line := p.hear(p.t)
	if err := json.Unmarshal([]byte(line), &a); err != nil {
		p.t.Fatalf("peer says %q", line)
	}
	return a
}

func (p *peer) do(o order) answer {
	p.t.Helper()
	p.start(o)
	return p.answer()
}

// must gives an order that has to end in result.
func (p *peer) must(result string, o order) answer {
	p.t.Helper()
	a := p.do(o)
	if a.Result != result {
		p.t.Fatalf("another process, %s %s: %s (%s), want %s", o.Do, o.Path, a.Result, a.Error, result)
	}
	return a
}

// waitsInKernel returns once a thread of the process is blocked in flock(2) or
// fcntl(2).
func waitsInKernel(t testing.TB, pid int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
		for _, task := range tasks {
			call, _ := os.ReadFile(task)
			nr, err := strconv.Atoi(strings.SplitN(string(call), " ", 2)[0])
			if err == nil && (nr == unix.SYS_FLOCK || nr == unix.SYS_FCNTL) {
				return
			}
		}
	}
	t.Fatalf("no thread of %d waits in the kernel for a lock", pid)
}

// waits returns once the peer waits for its lock, which is held: in the kernel, or
// polling. A poller has the file open and, between its tries, no thread that runs; two
// looks in a row, since a thread can also sleep for a moment on its way to the first.
func (p *peer) waits(w flockctx.Wait) {
	p.t.Helper()
	if w != flockctx.WaitPoll {
		waitsInKernel(p.t, p.pid())
		return
	}
	looks := 0
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if looks++; !p.hasOpen(p.path) || !p.threadsAre("S") {
			looks = 0
		}
		if looks == 2 {
			return
		}
	}
	p.t.Fatalf("process %d does not poll", p.pid())
}

func (p *peer) hasOpen(path string) bool {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid()))
	for _, fd := range fds {
		if target, _ := os.Readlink(fd); target == path {
			return true
		}
	}
	return false
}

// threadsAre reports whether all threads of the process are in the state of
// /proc/PID/stat.
func (p *peer) threadsAre(state string) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.pid()))
	for _, s := range stats {
		b, _ := os.ReadFile(s)
		if _, rest, _ := strings.Cut(string(b), ") "); !strings.HasPrefix(rest, state) {
			return false
		}
	}
	return len(stats) > 0
}

// stop stops the process, and returns once all of its threads have stopped: until
// then one of them may still be granted a lock.
func (p *peer) stop() {
	p.t.Helper()
	unix.Kill(p.pid(), unix.SIGSTOP)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if p.threadsAre("T") {
			return
		}
	}
	p.t.Fatalf("process %d does not stop", p.pid())
}

var mechanisms = []flockctx.Mechanism{flockctx.BSD, flockctx.OFD}
var waits = []flockctx.Wait{flockctx.WaitBlock, flockctx.WaitPoll}

// eachWay runs f for each mechanism and way to wait.
func eachWay(t *testing.T, f func(t *testing.T, o flockctx.Options)) {
	for _, m := range mechanisms {
		for _, w := range waits {
			t.Run(fmt.Sprintf("%v/%v", m, w), func(t *testing.T) {
				f(t, flockctx.Options{Mechanism: m, Wait: w})
			})
		}
	}
}

// mustTry checks that the lock is free, or with want "busy" that it is not.
func mustTry(t testing.TB, want, path string, o flockctx.Options) {
	t.Helper()
	l, err := flockctx.TryLock(path, &o)
	if got := outcome(err); got != want {
		t.Fatalf("TryLock: %s (%v), want %s", got, err, want)
	}
	if err == nil {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
