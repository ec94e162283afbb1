package gofrstest

import (
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

var (
	seed      = flag.Int("seed", 1, "of the first sequence")
	sequences = flag.Int("sequences", 10000, "random call sequences to compare")
)

// A program of two packages is carried over by changing the import, and again by go
// fix, and each time answers a random call sequence as it did with the original.
func TestProgram(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIP: the original waits for itself there, where it would convert")
	}
	n := *sequences
	if testing.Short() {
		n /= 10
	}
	bin := t.TempDir()
	build := func(dir, name string) string {
		exe := filepath.Join(bin, name)
		run(t, dir, "go", "build", "-o", exe, ".")
		out := run(t, dir, exe, strconv.Itoa(*seed), strconv.Itoa(n), t.TempDir())
		return out
	}
	want := build("program", "original.exe")

	dir := t.TempDir()
	newModule(t, dir, ours+"/gofrstest/program")
	copyFiles(t, dir, "program", true, goFile, func(s string) string {
		return strings.ReplaceAll(s, `"`+original+`"`, `"`+ours+`"`)
	})
	same(t, "with the import changed", build(dir, "import.exe"), want)

	run(t, dir, "go", "fix", "./...")
	b, err := os.ReadFile(filepath.Join(dir, "store", "store.go"))
	must(t, err)
	fixed := string(b)
	for _, old := range []string{"NewFlock(", ".Unlock()", ".Path()", ".String()"} {
		if strings.Contains(fixed, old) {
			t.Errorf("go fix has left %s", old)
		}
	}
	for _, now := range []string{"flock.New(path)", "defer l.Close()", "return s.handles[key].Close()", "l.Name() == fmt.Sprint(l)"} {
		if !strings.Contains(fixed, now) {
			t.Errorf("go fix has not made %s", now)
		}
	}
	same(t, "after go fix", build(dir, "fixed.exe"), want)
	t.Logf("%d sequences, %d calls, three programs", n, strings.Count(want, ";"))
}

// same reports the first line in which got is not want.
func same(t *testing.T, what, got, want string) {
	t.Helper()
	lines := strings.Split(want, "\n")
	sequence := ""
	for i, line := range strings.Split(got, "\n") {
		if strings.HasPrefix(line, "sequence ") {
			sequence = line
		}
		if i >= len(lines) || line != lines[i] {
			t.Fatalf("%s, %s: %q, the original says %q", what, sequence, line, lines[min(i, len(lines)-1)])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes of answers, the original has %d", what, len(got), len(want))
	}
}
