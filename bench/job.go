//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// A job is what a child process does. It is given in the environment, so that a
// child's memory and threads are those of the job and of nothing else.
type job struct {
	Do    string // a key of jobs
	Cand  string
	Path  string
	Board string // of handover
	Me    int
	N     int
	Files int
	Hold  time.Duration
	Pause time.Duration
	For   time.Duration
	Start int64 // monotonic time at which processes start together
	Read  int   // percentage of shared locks
	Case  string
}

const jobVariable = "FLOCKCTX_BENCH_JOB"

// jobs are what a child can do. What it returns is written as JSON to standard output.
var jobs map[string]func(*job) (any, error)

func init() {
	jobs = map[string]func(*job) (any, error){
		"hold":       holdJob,
		"handover":   handoverJob,
		"goroutines": goroutinesJob,
		"processes":  processesJob,
		"fair":       fairJob,
		"cancel":     cancelJob,
		"waiters":    waitersJob,
	}
}

func runJob(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	do := jobs[j.Do]
	if do == nil {
		return fmt.Errorf("no job %q", j.Do)
	}
	r, err := do(&j)
	if err != nil {
		return fmt.Errorf("%s of %s: %w", j.Do, j.Cand, err)
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// A child is a process at work.
type child struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
}

func startJob(j job) (*child, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), jobVariable+"="+string(text))
	return startCommand(cmd)
}

func startCommand(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd}
	cmd.Stderr = os.Stderr
	// Whatever happens to the parent, no child stays behind with a lock.
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var err error
	if c.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.stdout = bufio.NewReaderSize(out, 1<<16)
	return c, cmd.Start()
}

// line waits for a line of the child's standard output.
func (c *child) line() (string, error) {
	s, err := c.stdout.ReadString('\n')
	if err != nil {
		err = fmt.Errorf("%v: %w", c.cmd.Args, err)
	}
	return s, err
}

// wait waits for the child's end, and decodes what it wrote into v.
func (c *child) wait(v any) error {
	text, err := io.ReadAll(c.stdout)
	c.stdin.Close()
	if werr := c.cmd.Wait(); werr != nil {
		return werr
	}
	if err != nil || v == nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// stop ends a child that waits for the end of its standard input.
func (c *child) stop() {
	c.stdin.Close()
	c.cmd.Wait()
}

// run starts a child and waits for what it returns.
func run[T any](j job) (r T, err error) {
	c, err := startJob(j)
	if err != nil {
		return r, err
	}
	return r, c.wait(&r)
}

// startTogether starts n children and, once all are ready, tells them when to begin: in
// 3 ms from then.
func startTogether(n int, start func(i int) (*child, error)) (children []*child, err error) {
	for i := range n {
		c, err := start(i)
		if err != nil {
			return nil, err
		}
		children = append(children, c)
	}
	for _, c := range children {
		if _, err := c.line(); err != nil {
			return nil, err
		}
	}
	at := now() + int64(3*time.Millisecond)
	for _, c := range children {
		if _, err := fmt.Fprintln(c.stdin, at); err != nil {
			return nil, err
		}
	}
	return children, nil
}

// awaitStart is the child's side of startTogether: it returns when it is to begin.
func awaitStart() (at int64, err error) {
	fmt.Println("ready")
	if _, err := fmt.Scanln(&at); err != nil {
		return 0, err
	}
	time.Sleep(time.Duration(at - now()))
	return at, nil
}

// longContext returns a context that can end and does not, as in a program that uses one.
func longContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Hour)
}

// holdJob locks as many files as it is told and holds them until it is stopped.
func holdJob(j *job) (any, error) {
	for i := range max(j.Files, 1) {
		fd, err := unix.Open(fileName(j.Path, i), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
			return nil, err
		}
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return nil, err
}

// startHolder returns when the files are locked.
func startHolder(path string, files int) (*child, error) {
	c, err := startJob(job{Do: "hold", Path: path, Files: files})
	if err != nil {
		return nil, err
	}
	_, err = c.line()
	return c, err
}

// fileName names the ith file at path; the first is path itself.
func fileName(path string, i int) string {
	if i == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, i)
}

var epoch = time.Now()

// offset is the reading of CLOCK_MONOTONIC at epoch. All processes share that clock;
// Go's own readings of it start at another point in each.
var offset = func() int64 {
	var best, width int64 = 0, 1 << 62
	for range 20 {
		var t unix.Timespec
		before := int64(time.Since(epoch))
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
			panic(err)
		}
		after := int64(time.Since(epoch))
		if after-before < width {
			best, width = t.Nano()-(before+after)/2, after-before
		}
	}
	return best
}()

// now returns CLOCK_MONOTONIC.
func now() int64 { return offset + int64(time.Since(epoch)) }

// cpu returns the CPU time of this process.
func cpu() int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
