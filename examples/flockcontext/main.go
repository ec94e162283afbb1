// Flockcontext shows every usage of the README of Python's flockcontext, from which
// flockctx takes its name, in Go. Each function has the Python above it.
//
//	go run ./examples/flockcontext /tmp/my.lock
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/flockctx/flockctx"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 || strings.HasPrefix(os.Args[1], "-") {
		log.Print("usage: flockcontext FILE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	for _, usage := range []func(context.Context, string, io.Writer) error{
		exclusive, timeout, nonBlocking, shared, releaseAndAcquire, openFile,
	} {
		if err := usage(ctx, os.Args[1], os.Stdout); err != nil {
			stop()
			log.Fatal(err)
		}
	}
}

// truncate is what mode 'w' means, except that the file of another holder keeps its
// content until the lock is held.
var truncate = &flockctx.Options{Flag: os.O_WRONLY | os.O_CREATE | os.O_TRUNC}

// Exclusive blocking lock:
//
//	with FlockOpen('/tmp/my.lock', 'w') as lock:
//	    lock.fd.write('Locked\n')
func exclusive(ctx context.Context, path string, w io.Writer) error {
	return flockctx.Do(ctx, path, truncate, func(l *flockctx.Flock) error {
		fmt.Fprintln(w, "exclusive lock acquired")
		_, err := io.WriteString(l.File(), "Locked\n")
		return err
	})
}

// Exclusive blocking lock with 1 second timeout:
//
//	with FlockOpen('/tmp/my.lock', 'w', timeout=1) as lock:
//	    lock.fd.write('Locked\n')
func timeout(ctx context.Context, path string, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := flockctx.Do(ctx, path, truncate, func(l *flockctx.Flock) error {
		fmt.Fprintln(w, "exclusive lock acquired within a second")
		_, err := io.WriteString(l.File(), "Locked\n")
		return err
	})
	if errors.Is(err, context.DeadlineExceeded) {
		fmt.Fprintln(w, "timeout")
	}
	return err
}

// Exclusive non-blocking lock:
//
//	try:
//	    with FlockOpen('/tmp/my.lock', 'w', blocking=False) as lock:
//	        lock.fd.write('Locked\n')
//	except IOError as e:
//	    print('Can not acquire lock')
func nonBlocking(_ context.Context, path string, w io.Writer) error {
	l, err := flockctx.TryLock(path, truncate)
	if errors.Is(err, flockctx.ErrLocked) {
		fmt.Fprintln(w, "can not acquire lock")
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "exclusive lock acquired without waiting")
	_, err = io.WriteString(l.File(), "Locked\n")
	return errors.Join(err, l.Close())
}

// Shared blocking lock (the Python empties the file under the other holders of the
// lock; here it is read):
//
//	with FlockOpen('/tmp/my.lock', 'w', exclusive=False) as lock:
//	    lock.fd.write('Locked\n')
func shared(ctx context.Context, path string, w io.Writer) error {
	return flockctx.Do(ctx, path, &flockctx.Options{Mode: flockctx.Shared}, func(l *flockctx.Flock) error {
		b, err := io.ReadAll(l.File())
		fmt.Fprintf(w, "shared lock acquired, file has %q\n", b)
		return err
	})
}

// Acquire and release within context:
//
//	with FlockOpen('/tmp/my.lock', 'w') as lock:
//	    print('Lock acquired')
//	    lock.fd.write('Locked\n')
//	    lock.release()
//	    print('Lock released')
//	    lock.acquire()
//	    print('Lock acquired')
//	    lock.fd.write('Locked\n')
func releaseAndAcquire(ctx context.Context, path string, w io.Writer) error {
	return flockctx.Do(ctx, path, truncate, func(l *flockctx.Flock) error {
		fmt.Fprintln(w, "lock acquired")
		if _, err := io.WriteString(l.File(), "Locked\n"); err != nil {
			return err
		}
		if err := l.Unlock(); err != nil {
			return err
		}
		fmt.Fprintln(w, "lock released")
		if err := l.Lock(ctx); err != nil {
			return err
		}
		fmt.Fprintln(w, "lock acquired again")
		_, err := io.WriteString(l.File(), "Locked\n")
		return err
	})
}

// Locking already opened file:
//
//	with open('/tmp/my.lock', 'w') as fd:
//	    with Flock(fd):
//	        fd.write('Locked\n')
func openFile(ctx context.Context, path string, w io.Writer) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	l, err := flockctx.LockFile(ctx, f, nil)
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "open file locked")
	_, err = io.WriteString(f, "Locked\n")
	return errors.Join(err, l.Close(), f.Close())
}
