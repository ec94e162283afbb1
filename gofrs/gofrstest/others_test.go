//go:build unix

package gofrstest

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/juju/fslock"
	"github.com/rogpeppe/go-internal/lockedfile"
)

// What docs/migrating.md says of fslock, lockedfile and Python's filelock.

// removedUnderWaiter reports whether lock, which waits while the file is removed, gets
// the lock of a file that the path does not name.
func removedUnderWaiter(t *testing.T, lock func(path string) (unlock func(), err error)) bool {
	p := path(t)
	holder, err := flockctx.Lock(t.Context(), p, nil)
	must(t, err)
	type grant struct {
		unlock func()
		err    error
	}
	got := make(chan grant)
	go func() {
		unlock, err := lock(p)
		got <- grant{unlock, err}
	}()
	time.Sleep(50 * time.Millisecond) // so that it has the old file open
	must(t, os.Remove(p))
	must(t, holder.Close())
	g := <-got
	must(t, g.err)
	defer g.unlock()
	return free(t, p)
}

func TestRemovedUnderOthers(t *testing.T) {
	for name, lock := range map[string]func(string) (func(), error){
		"lockedfile": func(p string) (func(), error) { return lockedfile.MutexAt(p).Lock() },
		"fslock": func(p string) (func(), error) {
			l := fslock.New(p)
			return func() { l.Unlock() }, l.Lock()
		},
	} {
		if !eventually(func() bool { return removedUnderWaiter(t, lock) }) {
			t.Errorf("%s locks the file that the path names: take it off docs/migrating.md", name)
		}
	}
	if removedUnderWaiter(t, func(p string) (func(), error) {
		l, err := flockctx.Lock(t.Context(), p, nil)
		return func() { l.Close() }, err
	}) {
		t.Error("so do we")
	}
}

func TestFslock(t *testing.T) {
	p := path(t)
	l, err := flockctx.Lock(t.Context(), p, nil)
	must(t, err)
	theirs := fslock.New(p)
	if err := theirs.TryLock(); err != fslock.ErrLocked {
		t.Errorf("beside flockctx: %v", err)
	}
	before := runtime.NumGoroutine()
	if err := theirs.LockWithTimeout(10 * time.Millisecond); err != fslock.ErrTimeout {
		t.Errorf("beside flockctx: %v", err)
	}
	if runtime.NumGoroutine() <= before {
		t.Error("LockWithTimeout leaves no goroutine any more: take it off docs/migrating.md")
	}
	must(t, l.Close())
	for end := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}

	must(t, theirs.Lock())
	if free(t, p) {
		t.Error("flockctx beside fslock")
	}
	child := exec.Command("sleep", "60")
	must(t, child.Start())
	must(t, theirs.Unlock())
	if free(t, p) {
		t.Error("a child does not inherit the lock any more: take it off docs/migrating.md")
	}
	must(t, child.Process.Kill())
	child.Wait()

	l, err = flockctx.Lock(t.Context(), p, nil)
	must(t, err)
	child = exec.Command("sleep", "60")
	must(t, child.Start())
	must(t, l.Close())
	if !free(t, p) {
		t.Error("a child inherits the lock of flockctx")
	}
	must(t, child.Process.Kill())
	child.Wait()
}

// holdInPython holds a lock until its input ends, or says that it is taken.
const holdInPython = `
import filelock, sys
lock = filelock.FileLock(sys.argv[1], timeout=0)
try:
    lock.acquire()
except filelock.Timeout:
    print("taken", flush=True)
else:
    print("locked", flush=True)
    sys.stdin.read()
`

func TestFilelock(t *testing.T) {
	python := ""
	for _, p := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(p, "-c", "import filelock").Run() == nil {
			python = p
		}
	}
	if python == "" {
		t.Skip("SKIP: Python's filelock is not installed")
	}
	try := func(p string) (answer string, end func()) {
		cmd := exec.CommandContext(t.Context(), python, "-c", holdInPython, p)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		answer, err = bufio.NewReader(out).ReadString('\n')
		must(t, err)
		return strings.TrimSpace(answer), func() { must(t, errors.Join(in.Close(), cmd.Wait())) }
	}
	p := path(t)
	answer, end := try(p)
	if answer != "locked" || free(t, p) {
		t.Errorf("filelock: %s, and flockctx beside it", answer)
	}
	end()
	must(t, os.WriteFile(p, []byte("text"), 0o600))
	l, err := flockctx.Lock(t.Context(), p, nil)
	must(t, err)
	answer, end = try(p)
	end()
	if answer != "taken" {
		t.Errorf("filelock beside flockctx: %s", answer)
	}
	b, err := os.ReadFile(p)
	must(t, err)
	version, err := exec.Command(python, "-c", "import filelock; print(filelock.__version__)").Output()
	must(t, err)
	if strings.HasPrefix(string(version), "3.9.") && len(b) > 0 {
		t.Errorf("filelock %s leaves the content of a file that it could not lock: take it off docs/migrating.md", version)
	}
	must(t, l.Close())
}
