package flockdebug_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/flockdebug"
	"go.uber.org/goleak"
)

// The test binary runs itself as another process: it locks the first path, says so, and
// waits for the second one, if there is one, until its input ends.
const otherEnv = "FLOCKDEBUG_TEST_OTHER"

func TestMain(m *testing.M) {
	if os.Getenv(otherEnv) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	paths := filepath.SplitList(os.Getenv(otherEnv))
	if _, err := flockctx.TryLock(paths[0], nil); err != nil {
		panic(err)
	}
	fmt.Println("locked")
	if len(paths) > 1 {
		go flockctx.Lock(context.Background(), paths[1], nil)
	}
	io.Copy(io.Discard, os.Stdin)
}

// startOther starts one that calls itself as args say.
func startOther(t testing.TB, paths []string, args ...string) (pid int) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Args = args
	list := paths[0]
	for _, p := range paths[1:] {
		list += string(filepath.ListSeparator) + p
	}
	cmd.Env = append(os.Environ(), otherEnv+"="+list, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	if s, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || s != "locked\n" {
		t.Fatal(s, err)
	}
	return cmd.Process.Pid
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	limit := time.Now().Add(time.Minute)
	for !cond() {
		if time.Now().After(limit) {
			t.Fatalf("it never happened that %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// waitersOf returns how many goroutines of this process wait for path.
func waitersOf(path string) (n int) {
	for _, h := range flockctx.Snapshot() {
		if h.Path == path {
			n += h.Waiting
		}
	}
	return n
}

// record calls Start, and stop at the end of the test.
func record(t testing.TB) {
	t.Helper()
	t.Cleanup(flockdebug.Start())
}

// wait has a goroutine call fn, which waits for path until the end of the test.
func wait(t testing.TB, path string, fn func(ctx context.Context, path string) error) {
	t.Helper()
	before := waitersOf(path)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { fn(ctx, path) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	eventually(t, "it waits", func() bool { return waitersOf(path) > before })
}

// The code of a program that runs into trouble. The functions are called by their names on
// the page.

func serveJob(ctx context.Context, path string) error {
	return flockctx.Do(ctx, path, nil, func(*flockctx.Flock) error { return nil })
}

func writeReport(ctx context.Context, path string) error {
	_, err := flockctx.Lock(ctx, path, nil)
	return err
}

func dispatchJobs(path string) (*flockctx.Flock, error) { return flockctx.TryLock(path, nil) }

func openCache(path string) (*flockctx.Flock, error) {
	return flockctx.TryLock(path, &flockctx.Options{Mode: flockctx.Shared})
}

func writePIDFile(path string) (*flockctx.Flock, error) { return flockctx.TryLock(path, nil) }

// hold has fn lock path until the end of the test.
func hold(t testing.TB, path string, fn func(string) (*flockctx.Flock, error)) *flockctx.Flock {
	t.Helper()
	l, err := fn(path)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// transfer locks both files, one after the other. It says when it has the first, and waits
// for goOn with the second.
func transfer(ctx context.Context, from, to string, began chan<- struct{}, goOn <-chan struct{}) error {
	return flockctx.Do(ctx, from, nil, func(*flockctx.Flock) error {
		began <- struct{}{}
		<-goOn
		return flockctx.Do(ctx, to, nil, func(*flockctx.Flock) error { return nil })
	})
}

// cycle makes two goroutines that wait for each other over two files.
func cycle(t testing.TB, a, b string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	began, goOn := make(chan struct{}, 2), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { transfer(ctx, a, b, began, goOn) })
	wg.Go(func() { transfer(ctx, b, a, began, goOn) })
	<-began
	<-began
	close(goOn)
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	eventually(t, "both wait for their second file", func() bool { return waitersOf(a) == 1 && waitersOf(b) == 1 })
}

// scene is a program in trouble: locks that are held, a queue of 50, a holder in another
// process, and two goroutines that wait for each other.
func scene(t testing.TB, dir string) {
	t.Helper()
	file := func(name string) string { return filepath.Join(dir, name) }
	startOther(t, []string{file("mirror.lock")}, "rsync", "-a", "--delete", "/srv/www/", "backup:/srv/www/")
	wait(t, file("mirror.lock"), writeReport)
	hold(t, file("queue.lock"), dispatchJobs)
	for range 50 {
		wait(t, file("queue.lock"), serveJob)
	}
	cycle(t, file("accounts.db"), file("orders.db"))
	hold(t, file("daemon.pid"), writePIDFile)
	for _, name := range []string{"cache-1.lock", "cache-2.lock"} {
		hold(t, file(name), openCache)
	}
}
