package flockctx_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

// A trap: a finalizer that panics, or one that silently releases.
// A held lock stays held though the program forgot the handle.
func TestCollectorKeepsAHeldLock(t *testing.T) {
	path := tempPath(t)
	before := flockctx.Queues()
	func() {
		l, err := flockctx.Lock(t.Context(), path, nil)
		must(t, err)
		_ = l.File()
		l, err = flockctx.Lock(t.Context(), path+"2", &flockctx.Options{Mode: flockctx.Shared})
		must(t, err)
		// Unlocked and locked again: it has the guard of a forgotten handle.
		must(t, l.Unlock())
		must(t, l.Lock(t.Context()))
	}()
	other, other2 := startAgent(t, path, flockctx.Options{}), startAgent(t, path+"2", flockctx.Options{})
	for range 10 {
		runtime.GC()
		time.Sleep(time.Millisecond) // for cleanups to run
	}
	for _, a := range []*agent{other, other2} {
		if s := a.do("trylock"); s != "locked" {
			t.Errorf("another process: %s", s)
		}
	}
	wantLocked(t, path, flockctx.Options{})
	// The test knows where they are.
	flockctx.CloseHolders()
	other.must("trylock")
	other2.must("trylock")
	if n := flockctx.Queues(); n > before {
		t.Errorf("%d queues, %d before", n, before)
	}
}

// An unlocked, forgotten handle gives its descriptor back.
func TestCollectorClosesAnUnlockedHandle(t *testing.T) {
	dir := t.TempDir()
	collect() // what other tests forgot
	before, queues := countDescriptors(), flockctx.Queues()
	func() {
		for i := range 50 {
			l := flockctx.New(filepath.Join(dir, fmt.Sprint(i)), nil)
			must(t, l.Lock(t.Context()))
			if i%2 == 0 {
				l.File()
			}
			must(t, l.Unlock())
			if i%3 == 0 {
				l.File()
			}
			if i%5 == 0 {
				must(t, l.Lock(t.Context()))
				must(t, l.Unlock())
			}
		}
	}()
	eventually(t, "the descriptors are given back", func() bool {
		runtime.GC()
		return countDescriptors() <= before && flockctx.Queues() <= queues
	})
}

// The File of a forgotten handle stays open for who kept it, and closes itself.
func TestFileOutlivesItsHandle(t *testing.T) {
	path := tempPath(t)
	file := func() *os.File {
		l, err := flockctx.Lock(t.Context(), path, nil)
		must(t, err)
		defer l.Unlock()
		return l.File()
	}()
	for range 5 {
		collect()
		mustLock(t, tempPath(t), nil) // takes a number that is free
	}
	_, err := file.WriteString("content")
	must(t, err)
	must(t, file.Close())
	if b, err := os.ReadFile(path); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
}
