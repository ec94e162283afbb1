package flockdebug

import (
	"bytes"
	"context"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/flockctx/flockctx"
)

// A recorder knows who took which lock, and who waits for one.
type recorder struct {
	mu       sync.Mutex // guards the rest
	starts   int        // calls of start that were not stopped
	since    time.Time
	tracer   *flockctx.Tracer // that start has set
	replaced *flockctx.Tracer // that was set before
	held     map[*flockctx.Flock]*entry
	waiting  map[*entry]struct{}
}

// An entry is a lock that is held, or a call that waits for one.
type entry struct {
	event     flockctx.Event // of its beginning; the mode is that of the last Convert
	since     time.Time
	goroutine uint64 // that called
	stack     []uintptr
	site      runtime.Frame // of the stack: the caller of flockctx
	waits     bool
}

// A call that has waited finds its entry by this key of its context.
type entryKey struct{}

// hooks returns the tracer that records.
func (r *recorder) hooks() *flockctx.Tracer {
	return &flockctx.Tracer{
		Waiting: func(ctx context.Context, e flockctx.Event) context.Context {
			w, _ := newEntry(e)
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.starts == 0 {
				return ctx
			}
			w.waits = true
			r.waiting[w] = struct{}{}
			return context.WithValue(ctx, entryKey{}, w)
		},
		Acquired: func(ctx context.Context, e flockctx.Event) {
			var h *entry
			skip := 0
			if e.Op != "convert" {
				h, skip = newEntry(e)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.endWait(ctx, e)
			switch {
			case r.starts == 0:
			case h != nil:
				r.held[e.Flock] = h
				heldProfile().Add(h, skip)
			case r.held[e.Flock] != nil:
				r.held[e.Flock].event.Mode = e.Mode
			}
		},
		Failed: func(ctx context.Context, e flockctx.Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.endWait(ctx, e)
		},
		Released: func(e flockctx.Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if h := r.held[e.Flock]; h != nil {
				delete(r.held, e.Flock)
				heldProfile().Remove(h)
			}
		},
	}
}

// endWait forgets the wait of the call. A context of the caller's, which may panic, is not
// asked: that of a call which has waited is one of Waiting.
func (r *recorder) endWait(ctx context.Context, e flockctx.Event) {
	if e.Waited == 0 {
		return
	}
	if w, ok := ctx.Value(entryKey{}).(*entry); ok {
		delete(r.waiting, w)
	}
}

// newEntry is called by a hook, and returns how many calls from there on, the hook's
// included, are not the program's own.
func newEntry(e flockctx.Event) (_ *entry, skip int) {
	pcs := make([]uintptr, 48)
	pcs = pcs[:runtime.Callers(2, pcs)] // from the hook on
	site, skip := callerIn(pcs)
	return &entry{event: e, since: time.Now(), goroutine: goroutine(), stack: pcs, site: site}, skip
}

// callerIn returns the first call of a stack that is the program's own, and how many come
// before it.
func callerIn(pcs []uintptr) (f runtime.Frame, before int) {
	frames := runtime.CallersFrames(pcs)
	for more := true; more; before++ {
		if f, more = frames.Next(); !inside(f.Function) {
			return f, before
		}
	}
	return runtime.Frame{}, 0
}

// inside reports whether a function belongs to flockctx or to this package.
func inside(function string) bool {
	pkg, ok := strings.CutPrefix(function, root)
	return ok && (strings.HasPrefix(pkg, ".") || strings.HasPrefix(pkg, "/flockdebug."))
}

var root = reflect.TypeFor[flockctx.Flock]().PkgPath()

// goroutine returns the number of this goroutine, as a stack trace has it. Nothing but
// the page depends on it.
func goroutine() uint64 {
	var buf [64]byte
	b := bytes.TrimPrefix(buf[:runtime.Stack(buf[:], false)], []byte("goroutine "))
	if i := bytes.IndexByte(b, ' '); i > 0 {
		b = b[:i]
	}
	n, _ := strconv.ParseUint(string(b), 10, 64)
	return n
}
