package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/flockctx/flockctx"
)

// A prober tries what locks do in a directory, with a second process, the agent.
type prober struct {
	*command
	ctx    context.Context
	dir    string
	out    *reporter
	failed bool

	mu    sync.Mutex // guards the rest, which an interrupt takes away
	ended bool
	file  string
	agent *agent
}

// A reporter writes to standard output, and remembers that it could not.
type reporter struct {
	io.Writer
	err error
}

func (r *reporter) Write(b []byte) (int, error) {
	n, err := r.Writer.Write(b)
	r.err = cmp.Or(r.err, err)
	return n, err
}

// patience is how long the probe waits for what should come at once.
const patience = 10 * time.Second

var errGivenUp = errors.New("did not happen within " + patience.String())

// probe is --probe: a line for each thing that is tried.
func (c *command) probe(ctx context.Context, dir string) int {
	fi, err := os.Stat(dir)
	if err == nil && !fi.IsDir() {
		err = &fs.PathError{Op: "open", Path: dir, Err: errors.New("not a directory")}
	}
	if err != nil {
		c.say("%s: %v", dir, reason(err))
		return exitNoInput
	}
	p := &prober{command: c, dir: dir, out: &reporter{Writer: c.stdout}}
	code := make(chan int, 1)
	err = interruptible(ctx, func(ctx context.Context) error {
		p.ctx = ctx
		go func() { code <- p.run() }()
		select {
		case n := <-code:
			code <- n
			return nil
		case <-ctx.Done():
			// Whatever is being tried may hang.
			p.end(true)
			return ctx.Err()
		}
	})
	var sig signalError
	switch {
	case errors.As(err, &sig):
		interrupted.Store(int32(sig.signal))
		return 128 + int(sig.signal)
	case err != nil:
		c.say("%v", err)
		return exitSystem
	}
	return <-code
}

// run tries everything.
func (p *prober) run() int {
	defer p.end(false)
	fmt.Fprintf(p.out, "%s: %s\n", printable(p.dir), printable(fileSystem(p.dir)))
	for _, m := range []flockctx.Mechanism{flockctx.BSD, flockctx.OFD} {
		// After a failure it is not known what the agent holds or waits for.
		if p.agent == nil || p.failed {
			if err := p.renewAgent(); err != nil {
				p.say("cannot start a second process: %v", reason(err))
				return exitSystem
			}
		}
		p.mechanism(m)
	}
	switch {
	case p.out.err != nil:
		p.say("write error: %v", reason(p.out.err))
		return exitProblem
	case p.failed:
		return exitProblem
	}
	return exitOK
}

// end removes what there is of the probe, and sees to it that nothing comes after.
func (p *prober) end(atOnce bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.ended = true
	if p.agent != nil {
		if atOnce {
			p.agent.cmd.Process.Kill()
		}
		p.agent.stop()
	}
	if p.file != "" {
		os.Remove(p.file)
	}
}

// renewAgent starts an agent in place of the one that there is.
func (p *prober) renewAgent() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return errEnded
	}
	if p.agent != nil {
		p.agent.stop()
	}
	a, err := p.startAgent(p.dir)
	if err == nil {
		p.agent = a
	}
	return err
}

var errEnded = errors.New("the probe was interrupted")

// create creates the file that is locked, in place of the one before.
func (p *prober) create() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return "", errEnded
	}
	if p.file != "" {
		os.Remove(p.file)
	}
	f, err := os.CreateTemp(p.dir, ".flockctx-probe-*")
	if err != nil {
		return "", err
	}
	p.file = f.Name()
	return p.file, f.Close()
}

func (p *prober) mechanism(m flockctx.Mechanism) {
	kind := "flock(2)"
	if m == flockctx.OFD {
		kind = "fcntl(2), open file descriptions"
	}
	path, err := p.create()
	if err != nil {
		p.verdict(kind+": create a file", "", err)
		return
	}
	o := flockctx.Options{Mechanism: m}
	h, err := flockctx.TryLock(path, &o)
	if err == nil {
		err = h.Close()
	}
	if m == flockctx.OFD && errors.Is(err, errors.ErrUnsupported) {
		fmt.Fprintf(p.out, "  none  %s: %v\n", kind, reason(err))
		return
	}
	if !p.verdict(kind+": lock", "", err) {
		return
	}
	for _, check := range []struct {
		name string
		do   func(path string, o flockctx.Options) (string, error)
	}{
		{"exclusion", p.exclusion},
		{"shared locks", p.shared},
		{"blocking wait", p.blocking},
		{"cancellation", p.cancellation},
		{"holders are visible", p.holders},
		{"removal under a waiter", p.removal},
	} {
		detail, err := check.do(path, o)
		if errors.Is(err, errors.ErrUnsupported) && check.name == "holders are visible" {
			fmt.Fprintf(p.out, "  none  %s: %s: %v\n", kind, check.name, reason(err))
			continue
		}
		if p.verdict(kind+": "+check.name, detail, err) {
			continue
		}
		if check.name == "exclusion" {
			return // what else there is has no meaning then
		}
		if err = p.renewAgent(); err != nil {
			p.verdict(kind+": a second process", "", err)
			return
		}
	}
}

// verdict prints a line.
func (p *prober) verdict(name, detail string, err error) bool {
	if err != nil {
		p.failed = true
		fmt.Fprintf(p.out, "  FAIL  %s: %s\n", name, printable(reason(err)))
		return false
	}
	fmt.Fprintf(p.out, "  ok    %s%s\n", name, after(": ", detail))
	return true
}

func (p *prober) exclusion(path string, o flockctx.Options) (string, error) {
	for _, first := range []flockctx.Mode{flockctx.Exclusive, flockctx.Shared} {
		o.Mode = first
		h, err := flockctx.TryLock(path, &o)
		if err != nil {
			return "", err
		}
		defer h.Close()
		answer, err := p.agent.ask("try", path, flockctx.Exclusive, o.Mechanism)
		switch {
		case err != nil:
			return "", err
		case answer == "locked":
			return "", fmt.Errorf("a second process got the exclusive lock beside the %v one", first)
		case answer != "busy":
			return "", errors.New("second process: " + answer)
		}
		if err := h.Close(); err != nil {
			return "", err
		}
		// Another process sees that it is free again.
		if answer, err = p.agent.ask("try", path, flockctx.Exclusive, o.Mechanism); err != nil {
			return "", err
		} else if answer != "locked" {
			return "", errors.New("after the release, second process: " + answer)
		}
		if err := p.agent.unlock(); err != nil {
			return "", err
		}
	}
	return "", nil
}

func (p *prober) shared(path string, o flockctx.Options) (string, error) {
	o.Mode = flockctx.Shared
	h, err := flockctx.TryLock(path, &o)
	if err != nil {
		return "", err
	}
	defer h.Close()
	answer, err := p.agent.ask("try", path, flockctx.Shared, o.Mechanism)
	if err == nil && answer != "locked" {
		err = errors.New("second process, beside a shared lock: " + answer)
	}
	if err != nil {
		return "", err
	}
	o.Mode = flockctx.Exclusive
	x, err := flockctx.TryLock(path, &o)
	if err == nil {
		x.Close()
		return "", errors.New("an exclusive lock was granted beside a shared one")
	}
	return "", p.agent.unlock()
}

// contend has the agent wait for the lock that this process holds.
func (p *prober) contend(path string, o flockctx.Options) (*flockctx.Flock, error) {
	h, err := flockctx.TryLock(path, &o)
	if err != nil {
		return nil, err
	}
	if err := p.agent.send("lock", path, flockctx.Exclusive, o.Mechanism); err != nil {
		h.Close()
		return nil, err
	}
	// It says so before it waits, and needs a moment to get there.
	if answer, err := p.agent.answer(); err != nil || answer != "waiting" {
		h.Close()
		if err == nil {
			err = errors.New("second process: " + answer)
		}
		return nil, err
	}
	time.Sleep(50 * time.Millisecond)
	return h, nil
}

func (p *prober) blocking(path string, o flockctx.Options) (string, error) {
	h, err := p.contend(path, o)
	if err != nil {
		return "", err
	}
	start := time.Now()
	if err := h.Close(); err != nil {
		return "", err
	}
	answer, err := p.agent.answer()
	took := time.Since(start)
	if err == nil && answer != "locked" {
		err = errors.New("second process: " + answer)
	}
	if err != nil {
		return "", err
	}
	return "handed over in " + round(took), p.agent.unlock()
}

func (p *prober) cancellation(path string, o flockctx.Options) (string, error) {
	answer, err := p.agent.ask("try", path, flockctx.Exclusive, o.Mechanism)
	if err == nil && answer != "locked" {
		err = errors.New("second process: " + answer)
	}
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	var ended time.Time
	time.AfterFunc(100*time.Millisecond, func() { ended = time.Now(); cancel() })
	type result struct {
		h    *flockctx.Flock
		err  error
		took time.Duration
	}
	done := make(chan result, 1)
	go func() {
		h, err := flockctx.Lock(ctx, path, &o)
		took := time.Duration(0)
		if err != nil && ctx.Err() != nil {
			took = time.Since(ended)
		}
		done <- result{h, err, took}
	}()
	select {
	case r := <-done:
		if r.err == nil {
			r.h.Close()
			return "", errors.New("the lock was granted beside another one")
		}
		if !errors.Is(r.err, context.Canceled) {
			return "", r.err
		}
		return "after " + round(r.took), p.agent.unlock()
	case <-time.After(patience):
		return "", fmt.Errorf("the end of a wait %w", errGivenUp)
	}
}

func (p *prober) holders(path string, o flockctx.Options) (string, error) {
	h, err := p.contend(path, o)
	if err != nil {
		return "", err
	}
	defer func() {
		h.Close()
		p.agent.answer()
		p.agent.unlock()
	}()
	me, other := false, false
	hs, err := flockctx.Holders(path)
	for _, x := range hs {
		me = me || !x.Waiting && x.PID == os.Getpid()
		other = other || x.Waiting && x.PID == p.agent.cmd.Process.Pid
	}
	switch {
	case err != nil:
		return "", err
	case !me:
		return "", errors.New("the kernel's table lacks the holder")
	case !other:
		return "holder only, not who waits", nil
	}
	return "", nil
}

func (p *prober) removal(path string, o flockctx.Options) (string, error) {
	o.Remove = true
	h, err := p.contend(path, o)
	if err != nil {
		return "", err
	}
	if err := h.Close(); err != nil {
		return "", err
	}
	answer, err := p.agent.answer()
	if err == nil && answer != "locked" {
		err = errors.New("second process: " + answer)
	}
	if err != nil {
		return "", err
	}
	defer p.agent.unlock()
	// It has to have the lock on the file that is there now.
	o.Remove = false
	x, err := flockctx.TryLock(path, &o)
	if err == nil {
		x.Close()
		return "", errors.New("the one that waited has the lock on a file that is gone")
	}
	if !errors.Is(err, flockctx.ErrLocked) {
		return "", err
	}
	return "", nil
}

func round(d time.Duration) string {
	unit := time.Microsecond
	if d > 10*time.Millisecond {
		unit = time.Millisecond
	}
	return d.Round(unit).String()
}

// fileSystem describes the file system of a directory.
func fileSystem(dir string) string {
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	text, rerr := os.ReadFile("/proc/self/mountinfo")
	if err != nil || rerr != nil {
		return "unknown file system"
	}
	// The last mount of the longest mount point is the one on top.
	best, found := "", "unknown file system"
	for line := range strings.Lines(string(text)) {
		mount, rest, _ := strings.Cut(line, " - ")
		m, r := strings.Fields(mount), strings.Fields(rest)
		if len(m) < 5 || len(r) < 2 {
			continue
		}
		point := unescape(m[4])
		if (point == "/" || abs == point || strings.HasPrefix(abs, point+"/")) && len(point) >= len(best) {
			best = point
			found = fmt.Sprintf("file system %s, %s on %s", r[0], unescape(r[1]), point)
		}
	}
	return found
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// An agent is the second process of a probe. It takes an order per line, "try",
// "lock" or "unlock", and answers "locked", "busy", "waiting", "unlocked", or what
// went wrong.
type agent struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers chan string
}

var errAgent = errors.New("second process")

func (c *command) startAgent(dir string) (*agent, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	a := &agent{cmd: exec.Command(self, "--"+agentOption, dir), answers: make(chan string)}
	a.cmd.Stderr = c.stderr
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			a.answers <- s.Text()
		}
		close(a.answers)
	}()
	return a, nil
}

func (a *agent) send(verb, path string, m flockctx.Mode, mech flockctx.Mechanism) error {
	if _, err := fmt.Fprintf(a.in, "%s %d %d %s\n", verb, m, mech, path); err != nil {
		return fmt.Errorf("%w: %w", errAgent, err)
	}
	return nil
}

func (a *agent) answer() (string, error) {
	select {
	case s, ok := <-a.answers:
		if !ok {
			return "", fmt.Errorf("%w: it has ended", errAgent)
		}
		return s, nil
	case <-time.After(patience):
		return "", fmt.Errorf("%w: its answer %w", errAgent, errGivenUp)
	}
}

func (a *agent) ask(verb, path string, m flockctx.Mode, mech flockctx.Mechanism) (string, error) {
	if err := a.send(verb, path, m, mech); err != nil {
		return "", err
	}
	return a.answer()
}

func (a *agent) unlock() error {
	answer, err := a.ask("unlock", "-", 0, 0)
	if err == nil && answer != "unlocked" {
		err = errors.New("unlock in a second process: " + answer)
	}
	return err
}

// stop ends the agent. One that hangs in a system call is left behind.
func (a *agent) stop() {
	a.in.Close()
	kill := time.AfterFunc(time.Second, func() { a.cmd.Process.Kill() })
	defer kill.Stop()
	done := make(chan struct{})
	go func() {
		for range a.answers {
		}
		a.cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
	}
}

// agent is what the second process does.
func (c *command) agent(ctx context.Context, dir string) int {
	var h *flockctx.Flock
	for s := bufio.NewScanner(c.stdin); s.Scan(); {
		var verb, path string
		var m flockctx.Mode
		var mech flockctx.Mechanism
		if _, err := fmt.Sscan(s.Text(), &verb, &m, &mech); err != nil {
			return exitUsage
		}
		if f := strings.SplitN(s.Text(), " ", 4); len(f) == 4 {
			path = f[3]
		}
		o := &flockctx.Options{Mode: m, Mechanism: mech}
		var err error
		answer := "locked"
		switch verb {
		case "try":
			h, err = flockctx.TryLock(path, o)
		case "lock":
			fmt.Fprintln(c.stdout, "waiting")
			wait, cancel := context.WithTimeout(ctx, 2*patience)
			h, err = flockctx.Lock(wait, path, o)
			cancel()
		case "unlock":
			answer = "unlocked"
			if h == nil {
				err = flockctx.ErrNotLocked
			} else {
				err = h.Close()
			}
		}
		switch {
		case errors.Is(err, flockctx.ErrLocked):
			answer = "busy"
		case err != nil:
			answer = printable(err.Error())
		}
		fmt.Fprintln(c.stdout, answer)
	}
	return exitOK
}
