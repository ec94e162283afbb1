package flockotel_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/flockctx/flockctx"
	flockotel "github.com/flockctx/flockctx/observe/otel"
)

func Example() {
	// A program has an exporter of its own here, such as otlptracegrpc.
	exporter := tracetest.NewInMemoryExporter()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)))
	flockctx.SetTracer(flockotel.Tracer(nil))
	defer flockctx.SetTracer(nil)

	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "file.lock")
	l, err := flockctx.Lock(context.Background(), path, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	flockctx.Lock(ctx, path, nil) // waits in vain
	for _, span := range exporter.GetSpans() {
		fmt.Println(span.Name, span.Status.Code)
	}
	// Output: flockctx.wait Error
}
