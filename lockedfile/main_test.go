package lockedfile_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary runs itself for tests that need more than one process: with
// commandEnv set it is not a test but the command of that name.
const commandEnv = "LOCKEDFILE_TEST_COMMAND"

var commands = map[string]func(args []string) error{}

// registerCommand makes fn a command for newCommand.
func registerCommand(name string, fn func(args []string) error) struct{} {
	commands[name] = fn
	return struct{}{}
}

// init keeps the main goroutine on the first thread, which is the one that a test may
// follow by its system calls.
func init() {
	if os.Getenv(commandEnv) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if name := os.Getenv(commandEnv); name != "" {
		fn := commands[name]
		if fn == nil {
			fmt.Fprintln(os.Stderr, "no command named", name)
			os.Exit(2)
		}
		if err := fn(os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	before := countDescriptors()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		// The poller's descriptors come with the first os.File of a pipe.
		if after := countDescriptors(); after > before+3 {
			fmt.Fprintf(os.Stderr, "%d descriptors were open before the tests, %d are after them\n", before, after)
			code = 1
		}
	}
	os.Exit(code)
}

// countDescriptors returns how many this process has open, where the system tells. (What
// wine shows at this path is not it.)
func countDescriptors() int {
	if runtime.GOOS != "linux" {
		return 0
	}
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}

// newCommand returns the command that runs name in a process of its own.
func newCommand(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self, args...)
	// A race-enabled process otherwise sleeps a second before it ends.
	cmd.Env = append(os.Environ(), commandEnv+"="+name, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	return cmd
}

// patience bounds what should happen soon, on a machine under any load.
const patience = 60 * time.Second

// must fails the test for an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErr fails unless err matches all of targets.
func wantErr(t testing.TB, err error, targets ...error) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %v", targets)
	}
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("got %v (%T), which does not match %v", err, err, target)
		}
	}
}

// wantPathOnce fails unless err names path, once.
func wantPathOnce(t testing.TB, err error, path string) {
	t.Helper()
	if n := strings.Count(err.Error(), path); n != 1 {
		t.Errorf("%q names the path %d times", err, n)
	}
}

// wantContent fails unless the file has this content.
func wantContent(t testing.TB, path, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	if string(b) != want {
		t.Fatalf("%s contains %.80q, want %.80q", filepath.Base(path), b, want)
	}
}

// wantNames fails unless these are the names in dir.
func wantNames(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if strings.Join(names, " ") != strings.Join(want, " ") {
		t.Fatalf("the directory has %q, want %q", names, want)
	}
}
