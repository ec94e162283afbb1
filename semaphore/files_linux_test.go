package semaphore_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestFiles runs the tests that are not for Linux alone with what stands for slots where
// the system has no locks of open file descriptions.
func TestFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: slots that are files: they take a compilation")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("SKIP: slots that are files: %v", err)
	}
	dir, err := os.Getwd()
	must(t, err)
	replace := make(map[string]string)
	for _, pattern := range []string{"*_linux.go", "*_linux_test.go", "bytes.go"} {
		names, err := filepath.Glob(pattern)
		must(t, err)
		for _, name := range names {
			replace[filepath.Join(dir, name)] = "" // is not there
		}
	}
	constraint := regexp.MustCompile(`(?m)^//go:build .*$`)
	for _, name := range []string{"files.go", "bell_other.go"} {
		text, err := os.ReadFile(name)
		must(t, err)
		everywhere := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(everywhere, constraint.ReplaceAll(text, nil), 0o600))
		replace[filepath.Join(dir, name)] = everywhere
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	must(t, err)
	name := filepath.Join(t.TempDir(), "overlay.json")
	must(t, os.WriteFile(name, overlay, 0o600))
	out, err := exec.Command("go", "test", "-count=1", "-overlay", name, ".").CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
