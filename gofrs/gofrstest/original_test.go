package gofrstest

import (
	"os"
	"regexp"
	"strings"
	"testing"

	_ "github.com/stretchr/testify/suite" // of the original's tests: so go.sum has it
)

// The tests of the original pass against our code under the original's name. They are
// taken from the module cache and not changed.
func TestOriginalsTests(t *testing.T) {
	for _, test := range []struct {
		version string
		least   int // tests that must have run
		leave   string
	}{
		{version: "v0.13.0", least: 27},
		// From v0.13.2 on the internal test is of an unexported loop too, which has
		// no counterpart. The rest of it is that of v0.13.0.
		{version: "v0.13.2", least: 25, leave: "flock_internal_test.go"},
	} {
		t.Run(test.version, func(t *testing.T) {
			src := download(t, original+"@"+test.version)
			dir := inPlaceOfOriginal(t)
			copyFiles(t, dir, src, false, func(name string) bool { return goTest(name) && name != test.leave }, nil)
			run(t, dir, "go", "get", "github.com/stretchr/testify@v1.12.1")
			out := run(t, dir, "go", "test", "-v", "-count=1", ".")
			passed := regexp.MustCompile(`(?m)^ *--- PASS`).FindAllString(out, -1)
			t.Logf("%d tests passed", len(passed))
			if len(passed) < test.least {
				t.Errorf("%d tests passed, want %d:\n%s", len(passed), test.least, out)
			}
		})
	}
}

// A program that many use, buildx, compiles with our code in place of the original, and
// the tests of its package that locks pass.
func TestUser(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: buildx: -short")
	}
	src := download(t, "github.com/docker/buildx@v0.38.2")
	b, err := os.ReadFile(src + "/store/store.go")
	must(t, err)
	if !strings.Contains(string(b), `"`+original+`"`) {
		t.Fatal("buildx does not use the original any more")
	}
	dir := t.TempDir()
	copyFiles(t, dir, src, true, all, nil)
	top := run(t, "../..", "go", "list", "-m", "-f", "{{.Dir}}")
	run(t, dir, "go", "mod", "edit", "-replace", original+"="+inPlaceOfOriginal(t),
		"-replace", root+"="+strings.TrimSpace(top))
	deps := command(t, dir, "go", "list", "-deps", "./store")
	deps.Stderr = os.Stderr
	out, err := deps.Output()
	if err != nil {
		t.Skipf("SKIP: buildx: its dependencies are not in the module cache, and no proxy: %v", err)
	}
	if !strings.Contains(string(out), root+"\n") {
		t.Fatal("buildx does not depend on flockctx")
	}
	t.Log(run(t, dir, "go", "test", "-count=1", "./store"))
}
