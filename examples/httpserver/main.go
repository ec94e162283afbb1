// Httpserver counts its visitors in a file, which other processes use too, so it
// takes the file's lock for each request. A client that goes away stops waiting for
// the lock; one that waits for longer than -patience is told to come back later.
//
//	go run ./examples/httpserver -file /tmp/visitors &
//	curl -i localhost:8080                    # 200, visitor 1
//	flock /tmp/visitors sleep 5 &
//	curl -i localhost:8080                    # 503 after a second, Retry-After: 1
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
	"time"

	"github.com/flockctx/flockctx"
)

func main() {
	addr := flag.String("addr", "localhost:8080", "address to listen on")
	file := flag.String("file", "visitors", "file with the number of visitors")
	patience := flag.Duration("patience", time.Second, "how long a request waits for the lock")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("http://%v", ln.Addr())
	if err := serve(ctx, ln, &visitors{path: *file, patience: *patience, logf: log.Printf}); err != nil {
		log.Fatal(err)
	}
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
