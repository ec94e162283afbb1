package lockedfile_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/internal/syscallstep"
	"github.com/flockctx/flockctx/lockedfile"
	"golang.org/x/sys/unix"
)

// What one Update does, system call by system call: the process is killed at each, and
// each fails.

// stepContent is long enough that a part of it can be told from the whole.
var stepOld, stepNew = strings.Repeat("old ", 5000), strings.Repeat("new! ", 5000)

// update runs one Update between two marks, and prints what came of it.
var _ = registerCommand("update", func(args []string) error {
	// The runtime makes its poller with the first file: not among the steps.
	if f, err := os.Open(os.DevNull); err == nil {
		f.Close()
	}
	if _, err := os.Lstat(args[0]); err == nil {
		if _, err := lockedfile.Read(context.Background(), args[0]); err != nil {
			return err
		}
	}
	before := countDescriptors()
	syscallstep.Mark()
	err := lockedfile.Update(context.Background(), args[0], 0o600, func([]byte) ([]byte, error) { return []byte(stepNew), nil })
	syscallstep.Mark()
	fmt.Println(countDescriptors() - before)
	var durability *lockedfile.DurabilityError
	switch {
	case err == nil:
		fmt.Println("nil")
	case errors.As(err, &durability):
		fmt.Println("durability")
	default:
		fmt.Println(err)
	}
	return nil
})

// stepScenarios are a file that is replaced, and one that is created.
var stepScenarios = []struct {
	name   string
	exists bool
}{{"replace", true}, {"create", false}}

// stepDir makes a directory for one Update, with the file or without.
func stepDir(t *testing.T, exists bool) (dir, path string) {
	dir, err := os.MkdirTemp(t.TempDir(), "")
	must(t, err)
	path = filepath.Join(dir, "file")
	if exists {
		must(t, os.WriteFile(path, []byte(stepOld), 0o640))
	}
	return dir, path
}

// stepState returns what a reader without a lock sees: "old", "new", or "none".
func stepState(t *testing.T, path string) string {
	b, err := os.ReadFile(path)
	switch {
	case os.IsNotExist(err):
		return "none"
	case err != nil:
		t.Fatal(err)
	case string(b) == stepOld:
		return "old"
	case string(b) == stepNew:
		return "new"
	}
	return fmt.Sprintf("a part: %d bytes, %.20q", len(b), b)
}

// canTrace skips the test where a process cannot be followed.
func canTrace(t *testing.T) {
	_, path := stepDir(t, true)
	if err := syscallstep.Run(newCommand(t, "update", path), func(syscallstep.Step) syscallstep.Action { return syscallstep.Action{} }); err != nil {
		t.Skipf("SKIP: %s: ptrace(2): %v", t.Name(), err)
	}
	if got := stepState(t, path); got != "new" {
		t.Fatal("followed to the end, it leaves", got)
	}
}

// Killed before and after each system call, an Update leaves the old content or the new
// one, and what else it leaves the next one removes.
func TestKilledAtEachSystemCall(t *testing.T) {
	canTrace(t)
	for _, scenario := range stepScenarios {
		t.Run(scenario.name, func(t *testing.T) {
			left := map[string]int{}
			before := "none"
			if scenario.exists {
				before = "old"
			}
			renamed := false
			for at, ended := 0, false; !ended; at++ {
				dir, path := stepDir(t, scenario.exists)
				ended = true
				must(t, syscallstep.Run(newCommand(t, "update", path), func(s syscallstep.Step) syscallstep.Action {
					if s.N == at {
						ended = false
					}
					return syscallstep.Action{Kill: s.N == at}
				}))
				state := stepState(t, path)
				renamed = renamed || state == "new"
				if state != "new" && (state != before || ended) {
					t.Errorf("killed at step %d: %s", at, state)
				}
				entries, err := os.ReadDir(dir)
				must(t, err)
				left[fmt.Sprintf("%s, and %d more", state, len(entries)-map[bool]int{true: 1}[state != "none"])]++
				must(t, lockedfile.Update(t.Context(), path, 0o600, func(old []byte) ([]byte, error) {
					if got := map[string]string{"none": "", "old": stepOld, "new": stepNew}[state]; string(old) != got {
						t.Errorf("killed at step %d: the next Update gets %.20q", at, old)
					}
					return []byte("next"), nil
				}))
				wantContent(t, path, "next")
				wantNames(t, dir, "file")
				must(t, os.RemoveAll(dir))
			}
			t.Logf("killed at each step, there was: %v", left)
			if !renamed || left["new, and 0 more"] == 0 || len(left) < 3 {
				t.Error("the steps do not cover the way")
			}
		})
	}
}

// From the grant to its end an Update has locked whatever the path names: while it makes
// and removes names, and until the directory is synced. So who gets the lock finds what
// survives a loss of power, and nobody else's names.
func TestLockedWithoutAGap(t *testing.T) {
	canTrace(t)
	for _, scenario := range stepScenarios {
		t.Run(scenario.name, func(t *testing.T) {
			_, path := stepDir(t, scenario.exists)
			calls := map[string]int{}
			must(t, syscallstep.Run(newCommand(t, "update", path), func(s syscallstep.Step) syscallstep.Action {
				name, ok := map[int]string{
					unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_LINKAT: "linkat", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_FSYNC: "fsync",
				}[s.Call]
				if !ok {
					return syscallstep.Action{}
				}
				calls[name]++
				l, err := flockctx.TryLock(path, &flockctx.Options{Flag: os.O_RDWR})
				if err == nil {
					l.Close()
				}
				if !errors.Is(err, flockctx.ErrLocked) && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("step %d, %s: %v", s.N, name, err)
				}
				return syscallstep.Action{}
			}))
			if calls["fsync"] != 2 || calls["symlinkat"] != 1 || calls["unlinkat"] < 2 {
				t.Errorf("calls: %v", calls)
			}
		})
	}
}
