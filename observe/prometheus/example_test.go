package flockprom_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flockctx/flockctx"
	flockprom "github.com/flockctx/flockctx/observe/prometheus"
)

func Example() {
	locks := flockprom.New(nil)
	registry := prometheus.NewRegistry() // or prometheus.DefaultRegisterer
	registry.MustRegister(locks)
	flockctx.SetTracer(locks.Tracer())
	defer flockctx.SetTracer(nil)
	// http.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := flockctx.Lock(context.Background(), filepath.Join(dir, "file.lock"), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	metrics, err := registry.Gather()
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range metrics {
		fmt.Println(m.GetName())
	}
	// Output:
	// flockctx_held_locks
	// flockctx_wait_duration_seconds
	// flockctx_waiting_goroutines
}
