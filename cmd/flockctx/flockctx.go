package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"
)

// Exit statuses: those of sysexits.h that flock(1) uses.
const (
	exitOK          = 0
	exitProblem     = 1 // of --probe
	exitUsage       = 64
	exitData        = 65 // a descriptor or a file that cannot be locked
	exitNoInput     = 66 // cannot open
	exitUnavailable = 69 // cannot run the command
	exitSystem      = 71
	exitCantCreate  = 73
	exitIO          = 74
)

// A command is one run of flockctx.
type command struct {
	stdin          io.Reader
	stdout, stderr io.Writer
}

// interrupted is the signal that ended the wait for a lock.
var interrupted atomic.Int32

// Main is flockctx with the arguments args. It returns the exit status. The end of
// ctx ends a wait for a lock, and nothing else.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &command{stdin, stdout, stderr}
	o, err := parse(args)
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		if usage.text != "" {
			c.say("%s", usage.text)
		}
		if usage.hint {
			fmt.Fprintln(c.stderr, "Try 'flockctx --help' for more information.")
		}
		return exitUsage
	case err == errHelp:
		return c.print(help)
	case err == errVersion:
		return c.print("flockctx " + version() + "\n")
	}
	switch {
	case o.list:
		return c.list(o)
	case o.probe:
		return c.probe(ctx, o.args[0])
	case o.agent:
		return c.agent(ctx, o.args[0])
	}
	return c.lockAndRun(ctx, o)
}

// say prints a message on standard error.
func (c *command) say(format string, args ...any) {
	fmt.Fprintf(c.stderr, "flockctx: "+format+"\n", args...)
}

func (c *command) print(text string) int {
	if _, err := io.WriteString(c.stdout, text); err != nil {
		c.say("write error: %v", reason(err))
		return 1 // as flock(1)
	}
	return exitOK
}

func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}

// interruptible calls fn with a context that SIGINT, SIGTERM and SIGHUP end too,
// except those that were ignored when the program started.
func interruptible(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var sigs []os.Signal
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			sigs = append(sigs, s)
		}
	}
	ch := make(chan os.Signal, 1)
	if len(sigs) > 0 {
		signal.Notify(ch, sigs...)
		defer signal.Stop(ch)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case s := <-ch:
			cancel(signalError{s.(syscall.Signal)})
		case <-done:
		}
	}()
	return fn(ctx)
}

// signalError says that a signal ended the wait.
type signalError struct{ signal syscall.Signal }

func (e signalError) Error() string { return e.signal.String() }

// exit returns code, or if a signal is its reason ends the process by that signal,
// as it would have without a handler: a shell then knows that its script is to end.
func exit(code int) int {
	if s := syscall.Signal(interrupted.Load()); s != 0 && code == 128+int(s) {
		signal.Reset(s)
		raise(s)
		time.Sleep(time.Second)
	}
	return code
}
