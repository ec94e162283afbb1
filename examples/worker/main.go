// Worker runs workers that take turns at a job which one process at a time may do,
// in all processes that run it. SIGTERM, or Ctrl-C, ends it in good order: workers
// that wait for the lock stop waiting, the one that works finishes its job.
//
//	go run ./examples/worker -file /tmp/job.lock    # in two terminals
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
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flockctx/flockctx"
)

func main() {
	log.SetFlags(0)
	file := flag.String("file", "job.lock", "file to lock while working")
	workers := flag.Int("workers", 3, "number of workers")
	length := flag.Duration("job", 2*time.Second, "how long a job takes")
	flag.Parse()
	if flag.NArg() > 0 || *workers < 1 || *length < 0 {
		log.Print("there are no arguments but flags, at least one worker, and no job of less than no time")
		flag.Usage()
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p := &pool{path: *file, workers: *workers, w: os.Stdout, job: func(int) error {
		time.Sleep(*length)
		return nil
	}}
	if err := p.run(ctx); err != nil {
		log.Fatal(err)
	}
}

// A pool is some workers that share one lock.
type pool struct {
	path    string
	workers int
	job     func(worker int) error

	mu sync.Mutex // guards w
	w  io.Writer
}

func (p *pool) tell(worker int, what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "pid %d worker %d %s\n", os.Getpid(), worker, what)
}

// run has the workers work until ctx is done, or one of them fails.
func (p *pool) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range p.workers {
		g.Go(func() error { return p.work(ctx, i+1) })
	}
	return g.Wait()
}

// work does one job after the other. ctx says how long to wait for the lock; a job
// that has begun is finished, whatever becomes of ctx.
func (p *pool) work(ctx context.Context, worker int) error {
	for {
		p.tell(worker, "waits")
		err := flockctx.Do(ctx, p.path, nil, func(*flockctx.Flock) error {
			p.tell(worker, "works")
			defer p.tell(worker, "is done")
			return p.job(worker)
		})
		var busy *flockctx.BusyError
		if errors.As(err, &busy) && ctx.Err() != nil {
			p.tell(worker, "stops waiting")
			return nil
		}
		if err != nil {
			return err
		}
	}
}
