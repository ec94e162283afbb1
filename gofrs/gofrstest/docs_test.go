package gofrstest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// effects are the files that the samples under each heading leave.
var effects = map[string]map[string]string{
	"First step: another import":  {"job.lock": "", "job.done": ""},
	"Third step: flockctx itself": {"job.lock": "", "job.done": ""},
	"From lockedfile":             {"counter": "42\n"},
	"From juju/fslock":            {"agent.lock": "", "agent.done": ""},
	"From Python's filelock":      {"data.lock": "", "data": "new"},
}

// before is what the samples find.
var before = map[string]string{"counter": "41\n"}

var heading = regexp.MustCompile(`^##+ (.*)`)

// Every sample of docs/migrating.md compiles, as the body of a function of ctx, and does
// what its section is about; those for gofrs/flock with the original too.
func TestSamples(t *testing.T) {
	text, err := os.ReadFile("../../docs/migrating.md")
	must(t, err)
	section, body, inside, n := "", "", false, map[string]int{}
	for line := range strings.Lines(string(text)) {
		if m := heading.FindStringSubmatch(strings.TrimSpace(line)); m != nil && !inside {
			section = m[1]
		}
		switch {
		case strings.HasPrefix(line, "```go"):
			inside, body = true, ""
		case inside && strings.HasPrefix(line, "```"):
			inside = false
			n[section]++
			name := fmt.Sprintf("%s %d", section, n[section])
			flocks := []string{""}
			if strings.Contains(body, "flock.") {
				flocks = []string{original, ours}
			}
			for _, flock := range flocks {
				t.Run(strings.TrimSpace(name+" "+filepath.Base(flock)), func(t *testing.T) { sample(t, body, flock, effects[section]) })
			}
		case inside:
			body += line
		}
	}
	for section := range effects {
		if n[section] == 0 {
			t.Errorf("no sample under %q", section)
		}
	}
}

func sample(t *testing.T, body, flock string, want map[string]string) {
	var imports strings.Builder
	for _, path := range []string{"context", "errors", "fmt", "io", "os", "strconv", "strings", "time", root, root + "/lockedfile", flock} {
		name := path[strings.LastIndex(path, "/")+1:]
		if path != "" && path == flock {
			name = "flock"
		}
		if path != "" && (path == "context" || regexp.MustCompile(`\b`+name+`\.`).MatchString(body)) {
			fmt.Fprintf(&imports, "import %q\n", path)
		}
	}
	program := "package main\n\n" + imports.String() + "\nfunc main() {\n" +
		"\tif err := sample(context.Background()); err != nil {\n\t\tpanic(err)\n\t}\n}\n\n" +
		"func sample(ctx context.Context) error {\n" + body + "}\n"
	src, dir := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "main.go"), []byte(program), 0o600))
	exe := filepath.Join(src, "sample.exe")
	if out, err := command(t, ".", "go", "build", "-o", exe, filepath.Join(src, "main.go")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, program)
	}
	for name, content := range before {
		if _, ok := want[name]; ok {
			must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
		}
	}
	run(t, dir, exe)
	files, err := os.ReadDir(dir)
	must(t, err)
	if len(files) != len(want) {
		t.Errorf("files %v, want %v", files, want)
	}
	for name, content := range want {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != content {
			t.Errorf("%s: %q, %v; want %q", name, b, err, content)
		}
	}
}
