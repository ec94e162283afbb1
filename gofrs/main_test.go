package flock_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/flockctx/flockctx/gofrs"
	"go.uber.org/goleak"
)

// The test binary is also a process that holds a lock until its input ends.
func TestMain(m *testing.M) {
	if path := os.Getenv("FLOCK_HOLD"); path != "" {
		f := flock.New(path)
		lock := f.Lock
		if os.Getenv("FLOCK_SHARED") != "" {
			lock = f.RLock
		}
		if err := lock(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("locked")
		os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// hold starts another process that holds path, and returns what ends it.
func hold(t *testing.T, path string, shared bool) (release func()) {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "FLOCK_HOLD="+path, "GORACE=atexit_sleep_ms=0")
	if shared {
		cmd.Env = append(cmd.Env, "FLOCK_SHARED=1")
	}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	if err := cmd.Start(); err != nil {
		t.Skipf("SKIP: cannot start a process: %v", err)
	}
	release = sync.OnceFunc(func() {
		in.Close()
		cmd.Wait()
	})
	t.Cleanup(release)
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatalf("another process: %q", line)
	}
	return release
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// took fails the test unless a try ended so, without an error.
func took(t testing.TB, want bool) func(bool, error) {
	return func(got bool, err error) {
		t.Helper()
		if err != nil || got != want {
			t.Fatalf("got the lock: %v, %v; want %v", got, err, want)
		}
	}
}

// states fails the test unless f is in the state.
func states(t testing.TB, f *flock.Flock, locked, rlocked bool) {
	t.Helper()
	if f.Locked() != locked || f.RLocked() != rlocked {
		t.Fatalf("Locked %v, RLocked %v; want %v, %v", f.Locked(), f.RLocked(), locked, rlocked)
	}
}

// file returns a path for a lock, on a system that has locks.
func file(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lock")
	f := flock.New(path)
	if err := f.Lock(); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	must(t, f.Close())
	return path
}

// elsewhere runs fn in another goroutine, to its end.
func elsewhere(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	<-done
}
