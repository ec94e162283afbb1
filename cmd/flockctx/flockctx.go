package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
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
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return "(devel)"
	}
	return versionOf(b)
}

// versionOf returns the version that was built, and of which commit.
func versionOf(b *debug.BuildInfo) string {
	v, commit, changed := b.Main.Version, "", ""
	if v == "" {
		v = "(devel)"
	}
	for _, s := range b.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = ", with changes"
		}
	}
	if commit == "" {
		return v
	}
	return v + " (commit " + commit + changed + ")"
}
