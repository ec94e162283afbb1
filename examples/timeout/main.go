// Timeout waits for a lock for a while, and says how that ended. Run it in two
// terminals:
//
//	go run ./examples/timeout -wait 3s -hold 10s /tmp/x.lock
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/flockctx/flockctx"
)

func main() {
	log.SetFlags(0)
	wait := flag.Duration("wait", time.Second, "how long to wait for the lock; 0: do not wait")
	hold := flag.Duration("hold", time.Second, "how long to hold it")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: timeout [-wait DURATION] [-hold DURATION] FILE")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 || *wait < 0 || *hold < 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, flag.Arg(0), *wait, *hold); err != nil {
		stop()
		log.Fatal(err)
	}
}

// run locks path for some time, or tells on w why it did not, and returns an error.
func run(ctx context.Context, w io.Writer, path string, wait, hold time.Duration) error {
	begin := time.Now()
	l, err := lock(ctx, path, wait)
	var busy *flockctx.BusyError
	switch {
	case err == nil:
	case errors.Is(err, flockctx.ErrLocked):
		fmt.Fprintln(w, "another holder has the lock, and this program does not wait")
		return err
	case errors.As(err, &busy) && busy.Timeout():
		fmt.Fprintf(w, "still locked after %v\n", busy.Waited.Round(time.Millisecond))
		return err
	case errors.As(err, &busy):
		fmt.Fprintf(w, "interrupted after %v\n", busy.Waited.Round(time.Millisecond))
		return err
	default: // no permission, no such directory, no locks on this file system ...
		fmt.Fprintln(w, "cannot be locked")
		return err
	}
	fmt.Fprintf(w, "locked after %v\n", time.Since(begin).Round(time.Millisecond))
	select {
	case <-time.After(hold):
	case <-ctx.Done():
	}
	return l.Close()
}

// lock does not wait at all where wait is 0: a context whose deadline has passed
// never gets the lock, not even a free one.
func lock(ctx context.Context, path string, wait time.Duration) (*flockctx.Flock, error) {
	if wait == 0 {
		return flockctx.TryLock(path, nil)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel() // ends the wait, not the lock
	return flockctx.Lock(ctx, path, nil)
}
