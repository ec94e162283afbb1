// Httpserver counts its visitors in a file, which other processes use too, so it
// takes the file's lock for each request. A client that goes away stops waiting for
// the lock; one that waits for longer than -patience is told to come back later.
//
//	go run ./examples/httpserver -file /tmp/visitors &
//	curl -i localhost:8080                    # 200, visitor 1
//	flock /tmp/visitors sleep 5 &
//	curl -i localhost:8080                    # 503 after a second, Retry-After: 1
//
// With -debug another address serves a page that shows who holds the lock and who waits
// for it, and the profile of the code that does. It is not for the public:
//
//	go run ./examples/httpserver -file /tmp/visitors -debug localhost:6060
//	go tool pprof -top 'http://localhost:6060/debug/locks?format=pprof'
//
// With -metrics another address tells Prometheus how long the requests wait for the lock,
// and how many do:
//
//	go run ./examples/httpserver -file /tmp/visitors -metrics localhost:2112
//	curl localhost:2112/metrics
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/flockdebug"
	flockprom "github.com/flockctx/flockctx/observe/prometheus"
)

func main() {
	addr := flag.String("addr", "localhost:8080", "address to listen on")
	file := flag.String("file", "visitors", "file with the number of visitors")
	patience := flag.Duration("patience", time.Second, "how long a request waits for the lock")
	debug := flag.String("debug", "", "address of a page that shows the locks, not for the public")
	metrics := flag.String("metrics", "", "address of the metrics for Prometheus, not for the public")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Printf("%s: there are no arguments but flags", flag.Arg(0))
		flag.Usage()
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("http://%v", ln.Addr())
	var counts *flockctx.Tracer
	if *metrics != "" {
		var pages http.Handler
		pages, counts = metricsPages()
		flockctx.SetTracer(counts)
		defer beside(ctx, *metrics, "/metrics", pages)()
	}
	if *debug != "" {
		// Waits that last are told in the log as well, with who is in the way.
		flockctx.SetTracer(flockctx.JoinTracers(counts, flockctx.SlogTracer(nil)))
		defer flockdebug.Start()()
		defer beside(ctx, *debug, "/debug/locks", debugPages())()
	}
	if err := serve(ctx, ln, &visitors{path: *file, patience: *patience, logf: log.Printf}); err != nil {
		log.Fatal(err)
	}
}

// beside serves pages at an address of their own until ctx is done, and returns what waits
// for that. What is in them must not be on the mux of the visitors.
func beside(ctx context.Context, addr, path string, pages http.Handler) (wait func()) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("http://%v%s", ln.Addr(), path)
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, ln, pages) }()
	return func() {
		if err := <-ended; err != nil {
			log.Print(err)
		}
	}
}

func debugPages() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/debug/locks", flockdebug.Handler())
	return mux
}

// metricsPages returns them, and the tracer that they learn from.
func metricsPages() (http.Handler, *flockctx.Tracer) {
	locks := flockprom.New(nil)
	registry := prometheus.NewRegistry()
	registry.MustRegister(locks)
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return mux, locks.Tracer()
}

// serve serves until ctx is done, and lets the requests that run then finish.
func serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done <- srv.Shutdown(ctx)
	}()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-done
}

type visitors struct {
	path     string
	patience time.Duration
	logf     func(format string, args ...any)
}

func (v *visitors) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The request's context ends when the client goes away. It governs the wait
	// only: once the lock is held, the file is updated in any case.
	ctx, cancel := context.WithTimeout(r.Context(), v.patience)
	defer cancel()

	var n int
	err := flockctx.Do(ctx, v.path, nil, func(l *flockctx.Flock) (err error) {
		n, err = count(l.File())
		return err
	})
	var busy *flockctx.BusyError
	switch {
	case err == nil:
		fmt.Fprintf(w, "visitor %d\n", n)
	case r.Context().Err() != nil:
		v.logf("the client went away: %v", err) // there is nobody to answer
	case errors.As(err, &busy):
		v.logf("busy: %v", err)
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(v.patience.Seconds()))))
		http.Error(w, "busy, try again later", http.StatusServiceUnavailable)
	default:
		v.logf("error: %v", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
	}
}

// count adds one to the number in f.
func count(f *os.File) (int, error) {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, err
	}
	n := 0
	if s := strings.TrimSpace(string(b)); s != "" {
		if n, err = strconv.Atoi(s); err != nil {
			return 0, err
		}
	}
	n++
	_, err = f.WriteAt([]byte(strconv.Itoa(n)+"\n"), 0)
	return n, err
}
