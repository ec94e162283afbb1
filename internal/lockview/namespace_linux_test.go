package lockview_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/flockctx/flockctx/internal/lockview"
	"golang.org/x/sys/unix"
)

// In a PID namespace the kernel's table hides a lock whose taker has ended, and all
// who wait for it.
func TestNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: a PID namespace needs root")
	}
	if os.Getpid() == 1 {
		must(t, unix.Mount("proc", "/proc", "proc", 0, ""))
		insideNamespace(t)
		return
	}
	locks(t, newFile(t))
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe, "-test.run=^TestNamespace$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID,
		Unshareflags: unix.CLONE_NEWNS, // which also keeps its mounts to itself
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) { // EINVAL: an emulator
		t.Skipf("SKIP: no PID namespace: %v", err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: TestNamespace") {
		t.Errorf("%v: %s", err, out)
	}
}

func insideNamespace(t *testing.T) {
	path := newFile(t)
	own := lockedFile(t, path, unix.LOCK_EX)
	if h := one(t, path); h.PID != 1 {
		t.Errorf("own lock: %+v", h)
	}
	own.Close()
	handedOn(t)

	l := start(t, "flock+heir", path)
	child := l.child()
	l.cmd.Process.Wait()
	if h := one(t, path); h.PID != child || h.Locker != 0 {
		t.Errorf("inherited lock: %+v; want process %d", h, child)
	}
	if all := allLocks(t, path); len(all) != 1 || all[0].PID != child {
		t.Errorf("All has %+v; want process %d", all, child)
	}

	// A /proc without the table, as containers may have it.
	if err := unix.Mount("proc", "/proc", "proc", 0, "subset=pid"); err != nil {
		t.Logf("SKIP: a /proc without /proc/locks: %v", err)
		return
	}
	_, err := lockview.Of(path, nobody)
	if !errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/proc/locks") {
		t.Errorf("without /proc/locks: %v; want %v and its name", err, errors.ErrUnsupported)
	}
	if _, err = lockview.All(nobody); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("All without /proc/locks: %v; want %v", err, errors.ErrUnsupported)
	}
}

// To another user a process is a closed book; its lock is reported all the same.
func TestAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: becoming another user needs root")
	}
	path := newFile(t)
	locks(t, path)
	openDirectories(path)
	for _, verb := range []string{"flock", "posix"} {
		l := start(t, verb, path)
		out, err := asAnotherUser(command("look", path)).Output()
		must(t, err)
		// A POSIX lock is that of its process, and ends with it.
		pid := 0
		if verb == "posix" {
			pid = l.pid
		}
		want := fmt.Sprintf("started\npid %d locker %d command %v\n", pid, l.pid, verb == "posix")
		if string(out) != want {
			t.Errorf("%s: %s; want %s", verb, out, want)
		}
		l.stop()
	}
}

// openDirectories lets other users reach path.
func openDirectories(path string) {
	for d := filepath.Dir(path); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
}
