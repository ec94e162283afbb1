package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/flockctx/flockctx"
)

// exampleDir returns a folder for the files of an example.
func exampleDir() (dir string, remove func()) {
	dir, err := os.MkdirTemp("", "flockctx-example")
	if err != nil {
		log.Fatal(err)
	}
	return dir, func() { os.RemoveAll(dir) }
}

func Example() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "job.lock")

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	l, err := flockctx.Lock(ctx, path, nil)
	if err != nil {
		log.Fatal(err) // such as: flockctx: lock job.lock (exclusive): gave up after 5s: …
	}
	defer l.Close()
	fmt.Println("nobody else runs this now")
	// Output: nobody else runs this now
}

func ExampleTryLock() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "daemon.lock")

	first, err := flockctx.TryLock(path, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer first.Close()

	_, err = flockctx.TryLock(path, nil)
	if errors.Is(err, flockctx.ErrLocked) {
		fmt.Println("already running")
	}
	// Output: already running
}

func ExampleBusyError() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "file")
	holder, err := flockctx.Lock(context.Background(), path, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer holder.Close()

	ctx, cancel := context.WithTimeoutCause(context.Background(), 10*time.Millisecond, errors.New("the user is waiting"))
	defer cancel()
	_, err = flockctx.Lock(ctx, path, &flockctx.Options{Mode: flockctx.Shared})
	if busy, ok := errors.AsType[*flockctx.BusyError](err); ok {
		fmt.Println(filepath.Base(busy.Path), busy.Mode, busy.Timeout(), busy.Waited > 0, context.Cause(ctx))
	}
	// Output: file shared true true the user is waiting
}

// A counter in a file that any number of processes may use.
func ExampleDo() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "counter")

	for range 3 {
		err := flockctx.Do(context.Background(), path, nil, func(l *flockctx.Flock) error {
			n := 0
			if _, err := fmt.Fscan(l.File(), &n); err != nil && err != io.EOF {
				return err
			}
			_, err := l.File().WriteAt(fmt.Appendln(nil, n+1), 0)
			return err
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	b, _ := os.ReadFile(path)
	fmt.Print(string(b))
	// Output: 3
}

// A handle locks the same file again and again, and is a mutex for goroutines.
func ExampleNew() {
	dir, remove := exampleDir()
	defer remove()
	ctx := context.Background()

	l := flockctx.New(filepath.Join(dir, "file"), nil)
	defer l.Close()
	for i := range 2 {
		if err := l.Lock(ctx); err != nil {
			log.Fatal(err)
		}
		fmt.Println("round", i, l.Locked())
		if err := l.Unlock(); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(errors.Is(l.Unlock(), flockctx.ErrNotLocked))
	// Output:
	// round 0 true
	// round 1 true
	// true
}

func ExampleFlock_Convert() {
	dir, remove := exampleDir()
	defer remove()
	ctx := context.Background()

	l, err := flockctx.Lock(ctx, filepath.Join(dir, "file"), &flockctx.Options{Mode: flockctx.Shared})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	fmt.Println(l.Mode())
	if err := l.Convert(ctx, flockctx.Exclusive); err != nil {
		log.Fatal(err)
	}
	// With flock(2) others may have been in between: read the file again.
	fmt.Println(l.Mode())
	// Output:
	// shared
	// exclusive
}

func ExampleLockAll() {
	dir, remove := exampleDir()
	defer remove()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")

	// Another LockAll with the paths in another order does not deadlock.
	s, err := flockctx.LockAll(context.Background(), []string{from, to, from}, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	for _, l := range s.Files() {
		fmt.Println(filepath.Base(l.Name()), l.Locked())
	}
	// Output:
	// from true
	// to true
}

func ExampleLockFile() {
	dir, remove := exampleDir()
	defer remove()
	f, err := os.Create(filepath.Join(dir, "data"))
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()

	l, err := flockctx.LockFile(context.Background(), f, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(l.File() == f)
	if err := l.Close(); err != nil { // unlocks; f stays open
		log.Fatal(err)
	}
	_, err = f.WriteString("still open")
	fmt.Println(err)
	// Output:
	// true
	// <nil>
}

func ExampleOptions_remove() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "app.lock")

	err := flockctx.Do(context.Background(), path, &flockctx.Options{Remove: true}, func(*flockctx.Flock) error {
		_, err := os.Stat(path)
		fmt.Println("during:", err == nil)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	_, err = os.Stat(path)
	fmt.Println("afterwards:", err == nil)
	// Output:
	// during: true
	// afterwards: false
}

// The request's context ends when the client goes away, and so does the wait.
func ExampleLock_http() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "report.lock")

	handler := func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 50*time.Millisecond)
		defer cancel()
		l, err := flockctx.Lock(ctx, path, nil)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			w.Header().Set("Retry-After", "1")
			http.Error(w, "somebody else is at it", http.StatusServiceUnavailable)
			return
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer l.Close()
		fmt.Fprint(w, "done")
	}

	get := func() {
		w := httptest.NewRecorder()
		handler(w, httptest.NewRequest("GET", "/report", nil))
		fmt.Println(w.Code)
	}
	get()
	other, err := flockctx.TryLock(path, nil)
	if err != nil {
		log.Fatal(err)
	}
	get()
	other.Close()
	// Output:
	// 200
	// 503
}

// With a Root no name, however it was made up, leads outside of the directory.
func ExampleOptions_root() {
	dir, remove := exampleDir()
	defer remove()
	root, err := os.OpenRoot(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer root.Close()

	l, err := flockctx.TryLock("tenant-17.lock", &flockctx.Options{Root: root})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	fmt.Println("inside:", l.Locked())

	_, err = flockctx.TryLock("../tenant-18.lock", &flockctx.Options{Root: root})
	fmt.Println("outside:", err == nil)
	// Output:
	// inside: true
	// outside: false
}

func ExampleTracer() {
	dir, remove := exampleDir()
	defer remove()

	tracer := &flockctx.Tracer{
		Acquired: func(_ context.Context, e flockctx.Event) { fmt.Println("acquired", filepath.Base(e.Path)) },
		Released: func(e flockctx.Event) { fmt.Println("released", filepath.Base(e.Path)) },
	}
	// flockctx.SetTracer(tracer) is for all locks of the process, and flockctx.SlogTracer
	// makes one that writes a log.
	l, err := flockctx.TryLock(filepath.Join(dir, "job.lock"), &flockctx.Options{Tracer: tracer})
	if err != nil {
		log.Fatal(err)
	}
	l.Close()
	// Output:
	// acquired job.lock
	// released job.lock
}
