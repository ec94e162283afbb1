package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flockctx/flockctx"
)

// An order is what the peer is told: a line of JSON, answered by one.
type order struct {
	Do      string // lock, close, closeall, create, remove, rename, count, churn, die
	Handle  string // of lock and close
	Path    string
	To      string // of rename
	Options flockctx.Options
	Timeout time.Duration // of lock; 0: TryLock
	N       int           // of count and churn
}

// An answer is the error, if any; Kind is what the checks compare.
type answer struct{ Kind, Text string }

// The kinds of answers.
const (
	fine        = ""
	locked      = "locked"
	ended       = "ended"
	unsupported = "unsupported"
	failed      = "failed"
)

// kindOf says what err means to a caller.
func kindOf(err error) string {
	switch {
	case err == nil:
		return fine
	case errors.Is(err, flockctx.ErrLocked):
		return locked
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return ended
	case errors.Is(err, errors.ErrUnsupported):
		return unsupported
	}
	return failed
}

// serve is the peer: it does what it is told until its input ends.
func serve() {
	handles := map[string]*flockctx.Flock{}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			return
		}
		err := carryOut(o, handles)
		a := answer{Kind: kindOf(err)}
		if err != nil {
			a.Text = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return
		}
	}
}

func carryOut(o order, handles map[string]*flockctx.Flock) error {
	switch o.Do {
	case "lock":
		l, err := lock(o.Path, &o.Options, o.Timeout)
		if err == nil {
			handles[o.Handle] = l
		}
		return err
	case "close":
		defer delete(handles, o.Handle)
		return handles[o.Handle].Close()
	case "closeall":
		for _, l := range handles {
			l.Close() // of a lock that the check took from under it, perhaps
		}
		clear(handles)
		return nil
	case "create":
		return os.WriteFile(o.Path, []byte("new"), 0o666)
	case "remove":
		return os.Remove(o.Path)
	case "rename":
		return os.Rename(o.Path, o.To)
	case "count":
		return count(o.Path, &o.Options, o.N)
	case "churn":
		return churn(o.Path, o.N)
	case "die":
		self, _ := os.FindProcess(os.Getpid())
		self.Kill()
		select {}
	}
	return fmt.Errorf("no such order: %q", o.Do)
}

// lock tries for no timeout, and waits else.
func lock(path string, opts *flockctx.Options, timeout time.Duration) (*flockctx.Flock, error) {
	if timeout == 0 {
		return flockctx.TryLock(path, opts)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return flockctx.Lock(ctx, path, opts)
}

// A peer is the other process.
type peer struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	to  *json.Encoder
	of  *json.Decoder
	mu  sync.Mutex // one order at a time
}

// current is the peer that is running, if any.
var current *peer

// startPeer starts the peer unless it is running.
func startPeer() (*peer, error) {
	if current != nil {
		return current, nil
	}
	command := strings.Fields(*peerCommand)
	if len(command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		command = []string{self}
	}
	cmd := exec.Command(command[0], append(command[1:], "-serve")...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	current = &peer{cmd: cmd, in: in, to: json.NewEncoder(in), of: json.NewDecoder(out)}
	return current, nil
}

// endPeer kills the peer: whatever it held is free then.
func endPeer() {
	if current == nil {
		return
	}
	current.cmd.Process.Signal(syscall.SIGKILL)
	current.in.Close()
	current.cmd.Wait()
	current = nil
}

// do has the peer carry out o, and returns what came of it if it is not an answer
// that a check looks for.
func (p *peer) do(o order) error {
	a, err := p.ask(o)
	if err == nil && a.Kind != fine {
		err = errors.New(a.Text)
	}
	return err
}

func (p *peer) ask(o order) (a answer, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.to.Encode(o); err != nil {
		return a, err
	}
	err = p.of.Decode(&a)
	return a, err
}
