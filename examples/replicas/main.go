// Replicas is the httpserver example for more than one machine: several processes
// count their visitors in one store, and only the one that holds the lock may count.
// Where the lock lives is a flag, and nothing else changes:
//
//	cd examples/replicas # a module of its own
//	go run . -addr :8080 # files: replicas on one machine
//	go run . -addr :8080 -locks etcd://10.0.0.1:2379,10.0.0.2:2379
//	go run . -schema | psql postgres://admin@10.0.0.3/app # once, with the migrations
//	go run . -addr :8080 -locks postgres://user@10.0.0.3/app
//	go run . -addr :8080 -locks redis://10.0.0.4:6379
//
// With -lead the replicas elect one of them, which alone does what is to be done all the
// time, until it ends or loses the lock; the others stand by.
//
// A client that goes away stops waiting; one that waits for longer than -patience is
// told to come back later. A replica that loses its lock answers 503 and has counted
// nothing: the store compares the fencing token.
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

	"github.com/jackc/pgx/v5/pgxpool"
	goredis "github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/etcd"
	"github.com/flockctx/flockctx/locker/postgres"
	"github.com/flockctx/flockctx/locker/redis"
)

func main() {
	addr := flag.String("addr", "localhost:8080", "address to listen on")
	locks := flag.String("locks", os.TempDir(), "where the locks live: a folder, etcd://host:port,…, postgres://… or redis://…")
	ttl := flag.Duration("ttl", 15*time.Second, "how long a lock on a server outlives a silent holder")
	file := flag.String("store", "visitors", "file with the number of visitors, on a volume that all replicas have")
	patience := flag.Duration("patience", time.Second, "how long a request waits for the lock")
	work := flag.Duration("work", 0, "how long counting takes")
	lead := flag.Bool("lead", false, "elect a leader, which writes a report every second, instead of counting visitors")
	schema := flag.Bool("schema", false, "print the tables that -locks postgres://… needs, and end")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Printf("%s: there are no arguments but flags", flag.Arg(0))
		flag.Usage()
		os.Exit(2)
	}
	if *schema {
		fmt.Print(postgres.Schema())
		return
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, done, err := open(*locks, *ttl)
	if err != nil {
		log.Fatal(err)
	}
	defer done()
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("http://%v", ln.Addr())
	st := &store{path: *file}
	if !*lead {
		err = serve(ctx, ln, &visitors{locker: l, store: st, patience: *patience, work: *work})
	} else {
		r := &reporter{locker: l, store: st, every: time.Second}
		led := make(chan error, 1)
		go func() { led <- r.run(ctx); stop() }() // without it there is nothing to serve
		err = serve(ctx, ln, r)
		stop()
		err = errors.Join(err, <-led) // the lock is given back by then
	}
	if err != nil {
		log.Fatal(err)
	}
}

// open returns the Locker for where. It is all that differs.
func open(where string, ttl time.Duration) (l locker.Locker, done func() error, err error) {
	if addrs, ok := strings.CutPrefix(where, "etcd://"); ok {
		client, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(addrs, ","), DialTimeout: 5 * time.Second})
		if err != nil {
			return nil, nil, err
		}
		return etcd.New(client, &etcd.Options{TTL: ttl}), client.Close, nil
	}
	done = func() error { return nil }
	scheme, _, isURL := strings.Cut(where, "://")
	switch {
	case isURL && (scheme == "postgres" || scheme == "postgresql"), !isURL && strings.Contains(where, "host="):
		pool, err := pgxpool.New(context.Background(), where)
		if err != nil {
			return nil, nil, err
		}
		l := postgres.New(pool, &postgres.Options{TTL: ttl})
		return l, func() error { defer pool.Close(); return l.(io.Closer).Close() }, nil
	case isURL && (scheme == "redis" || scheme == "rediss"):
		o, err := goredis.ParseURL(where)
		if err != nil {
			return nil, nil, err
		}
		client := goredis.NewClient(o)
		l := redis.New(client, &redis.Options{TTL: ttl})
		return l, func() error { defer client.Close(); return l.(io.Closer).Close() }, nil
	case isURL: // a folder of that name is hardly meant
		return nil, nil, fmt.Errorf("-locks %s: neither a folder nor etcd://, postgres:// or redis://", where)
	}
	return locker.Dir(where, nil), done, nil
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
	locker   locker.Locker
	store    *store
	patience time.Duration
	work     time.Duration
}

func (v *visitors) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The request's context ends when the client goes away. It governs the wait
	// only: once the lock is held, the visitor is counted in any case.
	ctx, cancel := context.WithTimeout(r.Context(), v.patience)
	defer cancel()
	n, err := v.count(ctx)
	var busy *flockctx.BusyError
	switch {
	case err == nil:
		fmt.Fprintf(w, "visitor %d\n", n)
	case r.Context().Err() != nil:
		log.Printf("the client went away: %v", err) // there is nobody to answer
	case errors.As(err, &busy), errors.Is(err, locker.ErrLost), errors.Is(err, errStaleToken):
		log.Printf("try again: %v", err)
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(v.patience.Seconds()))))
		http.Error(w, "busy, try again later", http.StatusServiceUnavailable)
	default:
		log.Printf("error: %v", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
	}
}

// count adds one to the store under the lock.
func (v *visitors) count(ctx context.Context) (n int, err error) {
	h, err := v.locker.Lock(ctx, "visitors", locker.Exclusive)
	if err != nil {
		return 0, err
	}
	defer func() {
		// The visitor is counted if the store has taken it: it has compared the
		// token, so a lock that was lost after that changes nothing.
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if uerr := h.Unlock(uctx); uerr != nil {
			log.Printf("unlock: %v", uerr)
		}
	}()
	token, _ := h.Token()
	if n, err = v.store.get(h.Context(), token); err != nil {
		return 0, err
	}
	select { // what takes its time must end with the lock
	case <-time.After(v.work):
	case <-h.Context().Done():
	}
	if h.Context().Err() != nil {
		return 0, context.Cause(h.Context())
	}
	// Between that look and the effect the process may stop for any time. So the
	// store looks again.
	return n + 1, v.store.put(h.Context(), token, n+1)
}
