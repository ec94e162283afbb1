package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/flockctx/flockctx"
)

const runMain = "FLOCKCTX_EXAMPLE_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runMain) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

func TestOneWorksAtATime(t *testing.T) {
	var inside, jobs atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	p := &pool{path: filepath.Join(t.TempDir(), "lock"), workers: 4, w: io.Discard, job: func(int) error {
		if inside.Add(1) != 1 {
			t.Error("two workers are inside")
		}
		runtime.Gosched()
		inside.Add(-1)
		if jobs.Add(1) == 500 {
			cancel()
		}
		return nil
	}}
	if err := p.run(ctx); err != nil {
		t.Fatal(err)
	}
	if l, err := flockctx.TryLock(p.path, nil); err != nil {
		t.Errorf("the lock remains: %v", err)
	} else {
		l.Close()
	}
}

func TestAFailedJobEndsAll(t *testing.T) {
	fail := errors.New("out of paper")
	p := &pool{path: filepath.Join(t.TempDir(), "lock"), workers: 4, w: io.Discard, job: func(int) error { return fail }}
	if err := p.run(t.Context()); !errors.Is(err, fail) {
		t.Errorf("%v", err)
	}
}

// TestTermination sends SIGTERM to a process whose worker works and whose other
// workers wait.
func TestTermination(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no SIGTERM to send")
	}
	cmd := exec.Command(os.Args[0], "-file", filepath.Join(t.TempDir(), "lock"), "-workers", "3", "-job", "2s")
	cmd.Env = append(os.Environ(), runMain+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()

	var told []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		_, what, _ := strings.Cut(lines.Text(), " worker ")
		told = append(told, what)
		if len(told) == 4 { // three wait, one of them works
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, strings.Join(told, "\n"))
	}
	var works, done, stops int
	for _, what := range told {
		switch {
		case strings.HasSuffix(what, " works"):
			works++
		case strings.HasSuffix(what, " is done"):
			done++
		case strings.HasSuffix(what, " stops waiting"):
			stops++
		}
	}
	// At the end all three have stopped, the one that worked among them.
	if works == 0 || done != works || stops != 3 {
		t.Errorf("%d began, %d finished, %d stopped waiting:\n%s", works, done, stops, strings.Join(told, "\n"))
	}
	if i := slices.IndexFunc(told, func(s string) bool { return strings.HasSuffix(s, " is done") }); i >= 0 && !strings.HasSuffix(told[i-1], " stops waiting") {
		t.Errorf("the waiting workers did not stop before the job was done:\n%s", strings.Join(told, "\n"))
	}
}
