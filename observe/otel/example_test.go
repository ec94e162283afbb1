package flockotel_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"go.opentelemetry.io/otel"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/flockctx/flockctx"
	flockotel "github.com/flockctx/flockctx/observe/otel"
)

func Example() {
	// A program has an exporter of its own here, such as otlpmetricgrpc, and for the
	// spans a tracer provider.
	reader := sdkmetric.NewManualReader()
	otel.SetMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	flockctx.SetTracer(flockotel.Tracer(nil))
	defer flockctx.SetTracer(nil)

	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	l, err := flockctx.Lock(ctx, filepath.Join(dir, "file.lock"), nil)
	if err != nil {
		log.Fatal(err)
	}
	l.Close()

	var collected metricdata.ResourceMetrics
	if err := reader.Collect(ctx, &collected); err != nil {
		log.Fatal(err)
	}
	for _, m := range collected.ScopeMetrics[0].Metrics {
		fmt.Println(m.Name, m.Unit)
	}
	// Unordered output:
	// flockctx.wait.duration s
	// flockctx.hold.duration s
}
