//go:build linux

package lockedfile

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/flockctx/flockctx/internal/syscallstep"
)

var updateFlag = flag.Bool("update", false, "write the table into docs/lockedfile.md")

const commandVar = "FLOCKCTX_VERIFY_LOCKEDFILE"

var commands = map[string]func(args []string) error{
	"write":     writeOnce,
	"powerloss": recordDisk,
}

func init() {
	if os.Getenv(commandVar) != "" {
		runtime.LockOSThread() // the first thread is the one that is followed
	}
}

func TestMain(m *testing.M) {
	if name := os.Getenv(commandVar); name != "" {
		if err := commands[name](os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	os.Exit(m.Run())
}

// newCommand returns the command that runs name in a process of its own.
func newCommand(name string, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), commandVar+"="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

// writeOnce has a subject write, between two marks if it is followed.
func writeOnce(args []string) error {
	s := subjectNamed(args[0])
	followed := args[2] == "followed"
	if followed {
		syscallstep.Mark()
	}
	err := s.write(args[1], []byte(newContent))
	if followed {
		syscallstep.Mark()
	}
	return err
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("SKIP: %s needs root", t.Name())
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
