// Package flockotel reports the locks of a program to OpenTelemetry:
//
//	flockctx.SetTracer(flockotel.Tracer(nil))
//
// A call that waits for a lock has a span "flockctx.wait", a child of the span in the
// context that Lock was given. A lock that is free makes none. It has the attributes
// file.path, flockctx.operation ("lock" or "convert"), flockctx.mode ("exclusive" or
// "shared") and flockctx.mechanism ("flock", "ofd", or "locker"); where the call failed,
// the status Error and error.type as well.
//
// The metrics, in seconds where they are durations:
//
//   - flockctx.wait.duration, a histogram of how long each call waited, those that got the
//     lock at once or failed included; with flockctx.operation, flockctx.mode,
//     flockctx.mechanism and, of those that failed, error.type.
//   - flockctx.hold.duration, a histogram of how long locks were held, from the grant to
//     the release; with flockctx.mode, flockctx.mechanism, and error.type where the lock
//     was lost or the release went wrong. It has those that were granted while a tracer
//     was set.
//   - flockctx.failures, a counter of the calls that ended without the lock, with the
//     attributes that flockctx.wait.duration has.
//
// An error.type is "locked" (a TryLock found the lock taken), "timeout", "canceled",
// "closed", "lost" (by Convert, or to the network), "unavailable" (a server) or "_OTHER".
// So there are few series, however many files are locked; Options.Paths adds one attribute
// of which there may be many.
//
// With [github.com/flockctx/flockctx/locker.Trace] the same is told of locks by name, which
// have flockctx.name in place of file.path, and a span for each Lock.
//
// LockAll reports each file, and one whose path was replaced while it waited as a failure
// of type "_OTHER", after which it waits anew.
package flockotel

import (
	"cmp"
	"context"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/observe/internal/figures"
)

// Options says what to report, and to whom. A nil *Options and the zero value are the
// defaults.
type Options struct {
	TracerProvider trace.TracerProvider // nil: the global one, which may be set later
	MeterProvider  metric.MeterProvider // likewise

	// Paths adds file.path, as it was given to flockctx, or flockctx.name to the metrics.
	// Each has series of its own then, for good: for programs that lock few files.
	Paths bool
}

// The names that flockctx has no say in are those of the semantic conventions:
// https://opentelemetry.io/docs/specs/semconv/registry/attributes/
const (
	scope     = "github.com/flockctx/flockctx/observe/otel"
	filePath  = attribute.Key("file.path")
	errorType = attribute.Key("error.type")
	operation = attribute.Key("flockctx.operation")
	mode      = attribute.Key("flockctx.mode")
	mechanism = attribute.Key("flockctx.mechanism")
	lockName  = attribute.Key("flockctx.name")
)

// Tracer returns a tracer that reports to OpenTelemetry. Set it once, for the process or
// for a handle: two that report to the same provider count everything twice. What a
// provider refuses goes to the error handler of OpenTelemetry.
func Tracer(o *Options) *flockctx.Tracer {
	if o == nil {
		o = &Options{}
	}
	spans, meters := o.TracerProvider, o.MeterProvider
	if spans == nil {
		spans = otel.GetTracerProvider()
	}
	if meters == nil {
		meters = otel.GetMeterProvider()
	}
	r := &reporter{spans: spans.Tracer(scope), paths: o.Paths}
	m := meters.Meter(scope)
	var err error
	histogram := func(name, description string) metric.Float64Histogram {
		h, e := m.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(description),
			metric.WithExplicitBucketBoundaries(figures.Seconds...))
		err = cmp.Or(err, e)
		return h
	}
	r.waits = histogram("flockctx.wait.duration", "How long calls waited for a lock.")
	r.holds = histogram("flockctx.hold.duration", "How long locks were held.")
	failures, e := m.Int64Counter("flockctx.failures", metric.WithUnit("{failure}"),
		metric.WithDescription("Calls that ended without the lock."))
	if r.failures = failures; cmp.Or(err, e) != nil {
		otel.Handle(cmp.Or(err, e))
	}
	return &flockctx.Tracer{Waiting: r.waiting, Acquired: r.ended, Failed: r.ended, Released: r.released}
}

type reporter struct {
	spans        trace.Tracer
	waits, holds metric.Float64Histogram
	failures     metric.Int64Counter
	paths        bool
	kinds        sync.Map // of kind: metric.MeasurementOption
}

func (r *reporter) waiting(ctx context.Context, e flockctx.Event) context.Context {
	ctx, span := r.spans.Start(ctx, "flockctx.wait", trace.WithAttributes(
		named(e), operation.String(e.Op), mode.String(e.Mode.String()), mechanism.String(figures.Mechanism(e))))
	// By a key of its own: the context of the end may have a later tracer's span.
	return context.WithValue(ctx, r, &wait{span, e})
}

// A wait is in the context of its end, and in that of what a hook locks meanwhile.
type wait struct {
	span  trace.Span
	event flockctx.Event
}

func (r *reporter) ended(ctx context.Context, e flockctx.Event) {
	attributes := r.attributes(e, e.Op)
	r.waits.Record(ctx, e.Waited.Seconds(), attributes)
	if e.Err != nil {
		r.failures.Add(ctx, 1, attributes)
	}
	w, _ := ctx.Value(r).(*wait)
	if w == nil || w.event.Flock != e.Flock || w.event.Path != e.Path {
		return
	}
	if e.Err != nil {
		w.span.SetStatus(codes.Error, figures.Text(e.Err.Error()))
		w.span.SetAttributes(errorType.String(reason(e)))
	}
	w.span.End()
}

func (r *reporter) released(e flockctx.Event) {
	if e.Held != 0 {
		r.holds.Record(context.Background(), e.Held.Seconds(), r.attributes(e, ""))
	}
}

// attributes returns those of a metric of e, which has none of op where that is "". Those
// without a path are few and kept, since making them takes twice as long as all else.
func (r *reporter) attributes(e flockctx.Event, op string) metric.MeasurementOption {
	key := kind{op: op, mode: e.Mode, mechanism: figures.Mechanism(e)}
	if e.Err != nil {
		key.err = reason(e)
	}
	if r.paths {
		return key.attributes(named(e))
	}
	made, ok := r.kinds.Load(key)
	if !ok {
		made, _ = r.kinds.LoadOrStore(key, key.attributes())
	}
	return made.(metric.MeasurementOption)
}

// A kind is what the events of a series have in common, but for the path.
type kind struct {
	op        string // "" where it does not count
	mode      flockctx.Mode
	mechanism string
	err       string // the error.type, "" if there is none
}

func (k kind) attributes(more ...attribute.KeyValue) metric.MeasurementOption {
	more = append(more, mode.String(k.mode.String()), mechanism.String(k.mechanism))
	if k.op != "" {
		more = append(more, operation.String(k.op))
	}
	if k.err != "" {
		more = append(more, errorType.String(k.err))
	}
	return metric.WithAttributeSet(attribute.NewSet(more...))
}

// named says what e's lock is called.
func named(e flockctx.Event) attribute.KeyValue {
	if e.Flock == nil {
		return lockName.String(figures.Text(e.Path))
	}
	return filePath.String(figures.Text(e.Path))
}

// reason returns the error.type of e.Err.
func reason(e flockctx.Event) string { return cmp.Or(figures.Reason(e), "_OTHER") }
