// Package flockdebug shows the locks of a running program: which code holds which lock
// and since when, who waits for it, who holds it in other processes, and who waits for
// whom in a cycle.
//
//	stop := flockdebug.Start()
//	defer stop()
//	mux.Handle("GET /debug/locks", flockdebug.Handler())
//
// Importing it does nothing, and registers nothing. Recording costs some 15 µs for each
// lock that is taken, most of it for the stack and the number of the goroutine.
//
// The page shows the paths of locked files, the program's stacks, and command lines of
// all users' processes that lock the same files; a command line may have a secret in it.
// It must not be public: put it on a mux that only operators reach.
package flockdebug

import (
	"runtime/pprof"
	"sync"
	"time"

	"github.com/flockctx/flockctx"
)

// process is what is recorded of this process.
var process = recorder{held: map[*flockctx.Flock]*entry{}, waiting: map[*entry]struct{}{}}

// Start records from now on which code takes locks and waits for them, for [Handler] and
// [Profile], until stop is called. It adds itself to the tracer of the process, as
// [flockctx.JoinTracers] does, and stop puts that back, unless another one was set
// meanwhile; calls at that very moment may be told to one of the two only. Locks that are
// held already are shown without the code that took them.
//
// Start may be called more than once: recording ends with the last stop. A second call of
// one stop does nothing.
func Start() (stop func()) {
	process.start()
	return sync.OnceFunc(process.stop)
}

// Profile returns the runtime/pprof profile flockctx.held: the stacks that took the locks
// which are held now, each counting one. Its samples begin with the caller of flockctx. It
// is empty unless [Start] records. Once Start or Profile was called net/http/pprof lists
// it, where a program uses that:
//
//	go tool pprof -top http://localhost:6060/debug/pprof/flockctx.held
func Profile() *pprof.Profile { return heldProfile() }

var heldProfile = sync.OnceValue(func() *pprof.Profile { return pprof.NewProfile("flockctx.held") })

// start begins recording, if it has not begun.
func (r *recorder) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.starts++; r.starts > 1 {
		return
	}
	r.since = time.Now()
	r.tracer = r.hooks()
	if r.replaced = flockctx.SetTracer(r.tracer); r.replaced != nil {
		r.tracer = flockctx.JoinTracers(r.replaced, r.tracer)
		flockctx.SetTracer(r.tracer)
	}
}

// stop ends it with the last call.
func (r *recorder) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.starts--; r.starts > 0 {
		return
	}
	if now := flockctx.SetTracer(r.replaced); now != r.tracer {
		flockctx.SetTracer(now)
	}
	r.tracer, r.replaced = nil, nil
	for _, e := range r.held {
		heldProfile().Remove(e)
	}
	clear(r.held)
	clear(r.waiting)
}
