package gofrstest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	original = "github.com/gofrs/flock"
	ours     = "github.com/flockctx/flockctx/gofrs"
	root     = "github.com/flockctx/flockctx"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// command is a command in a module of its own, which may add to its go.mod.
func command(t testing.TB, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod", "GORACE=atexit_sleep_ms=0")
	return cmd
}

func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	out, err := command(t, dir, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// download returns the folder of a module in the module cache, or skips the test where
// it is not there and no proxy can be reached.
func download(t testing.TB, module string) string {
	t.Helper()
	out, err := command(t, t.TempDir(), "go", "mod", "download", "-json", module).Output()
	var answer struct{ Dir, Error string }
	if jerr := json.Unmarshal(out, &answer); err != nil || jerr != nil {
		t.Skipf("SKIP: %s: not in the module cache, and no proxy: %v, %s", module, err, answer.Error)
	}
	return answer.Dir
}

// copyFiles copies the files of a folder, and with deep of those in it, for whose name
// keep is true, and makes them writable. edit, if not nil, changes them.
func copyFiles(t testing.TB, to, from string, deep bool, keep func(name string) bool, edit func(string) string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	must(t, err)
	must(t, os.MkdirAll(to, 0o700))
	for _, e := range entries {
		path := filepath.Join(from, e.Name())
		if e.IsDir() {
			if deep {
				copyFiles(t, filepath.Join(to, e.Name()), path, deep, keep, edit)
			}
			continue
		}
		if !e.Type().IsRegular() || !keep(e.Name()) {
			continue
		}
		b, err := os.ReadFile(path)
		must(t, err)
		if edit != nil {
			b = []byte(edit(string(b)))
		}
		must(t, os.WriteFile(filepath.Join(to, e.Name()), b, 0o600))
	}
}

func all(string) bool         { return true }
func goFile(name string) bool { return strings.HasSuffix(name, ".go") }
func goTest(name string) bool { return strings.HasSuffix(name, "_test.go") }
func goCode(name string) bool { return goFile(name) && !goTest(name) }

// newModule writes a go.mod, and a go.sum with what this module and flockctx know.
func newModule(t testing.TB, dir, name string) {
	t.Helper()
	top, err := filepath.Abs("../..")
	must(t, err)
	mod := "module " + name + "\n\ngo 1.26.0\n\nrequire " + root + " v0.0.0-00010101000000-000000000000\n\n" +
		"replace " + root + " => " + top + "\n"
	must(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o600))
	var sum []byte
	for _, file := range []string{"go.sum", "../../go.sum"} {
		b, err := os.ReadFile(file)
		must(t, err)
		sum = append(sum, b...)
	}
	must(t, os.WriteFile(filepath.Join(dir, "go.sum"), sum, 0o600))
}

// inPlaceOfOriginal makes a module that has the name of the original and our code.
func inPlaceOfOriginal(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	newModule(t, dir, original)
	copyFiles(t, dir, "..", false, goCode, nil)
	return dir
}
