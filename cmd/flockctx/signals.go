package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// interrupted is the signal that ended the wait for a lock.
var interrupted atomic.Int32

// interruptible calls fn with a context that signals which end a process end too,
// except those that were ignored when the program started.
func interruptible(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sigs := notIgnored(fatal)
	if len(sigs) == 0 { // of none, Notify would make it all
		return fn(ctx)
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, sigs...)
	done, left := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(left)
		select {
		case s := <-ch:
			cancel(signalError{s.(syscall.Signal)})
		case <-done:
		}
	}()
	err := fn(ctx)
	close(done)
	<-left
	signal.Stop(ch)
	dieByDefault()
	// One that came with the grant, or after it, counts all the same.
	select {
	case s := <-ch:
		err = signalError{s.(syscall.Signal)}
	default:
		var sig signalError
		if errors.As(context.Cause(ctx), &sig) {
			err = sig
		}
	}
	return err
}

// notIgnored returns those of sigs that were not ignored when the program started.
func notIgnored(sigs []os.Signal) (rest []os.Signal) {
	for _, s := range sigs {
		if !isIgnored(s) {
			rest = append(rest, s)
		}
	}
	return rest
}

// isIgnored reports whether a signal was ignored when the program started. Go's
// runtime tells that of SIGHUP and SIGINT only; a shell that ignores SIGINT for its
// background jobs ignores SIGQUIT as well.
func isIgnored(s os.Signal) bool {
	return signal.Ignored(s) || s == syscall.SIGQUIT && signal.Ignored(syscall.SIGINT)
}

// signalError says that a signal ended the wait.
type signalError struct{ signal syscall.Signal }

func (e signalError) Error() string { return e.signal.String() }

// exit returns code, or if a signal is its reason ends the process by that signal,
// as it would have without a handler: a shell then knows that its script is to end.
func exit(code int) int {
	if s := syscall.Signal(interrupted.Load()); s != 0 && code == 128+int(s) {
		signal.Reset(s)
		dieByDefault()
		raise(s)
		time.Sleep(time.Second)
	}
	return code
}
