package flockctx_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// codeBlock finds the code of a language in Markdown.
var codeBlock = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")

// Every Go block of the README and of the guide is compiled, as the body of a function
// that has ctx unless it makes one, and run: all of a document in one process, in a
// directory where counter holds 99. What they are to do is done then.
func TestDocumentsRun(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles programs")
	}
	for _, doc := range []struct {
		name   string
		blocks int
		check  string            // the program's last statements
		files  map[string]string // what is left
	}{
		{"README.md", 6, `w := httptest.NewRecorder()
	http.DefaultServeMux.ServeHTTP(w, httptest.NewRequest("GET", "/rebuild", nil))
	fmt.Print(w.Code, " ", w.Body)`, map[string]string{
			"counter": "100\n", "worker.done": "", "nightly.done": "", "job.lock": "", "cache.lock": "", "cron.lock": "",
			"output": "no other process is here\nslot 0\n200 rebuilt\n"}},
		{"docs/guide.md", 2, "", map[string]string{"counter": "100\n", "output": ""}},
	} {
		t.Run(doc.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, "counter"), []byte("99\n"), 0o600))
			output := runBlocks(t, doc.name, doc.blocks, doc.check, dir)
			for name, want := range doc.files {
				got := output
				if name != "output" {
					b, err := os.ReadFile(filepath.Join(dir, name))
					must(t, err)
					got = string(b)
				}
				if got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		})
	}
}

// runBlocks runs the Go blocks of a document in dir and returns what they print.
func runBlocks(t *testing.T, doc string, atLeast int, check, dir string) string {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	text, err := os.ReadFile(doc)
	must(t, err)
	var blocks, calls strings.Builder
	n := 0
	for _, block := range codeBlock.FindAllStringSubmatch(string(text), -1) {
		if block[1] != "go" {
			continue
		}
		n++
		body := block[2]
		if !regexp.MustCompile(`(?m)^ctx, \w+ :=`).MatchString(body) && regexp.MustCompile(`\bctx\b`).MatchString(body) {
			body = "ctx := context.Background()\n_ = ctx\n" + body
		}
		if !regexp.MustCompile(`(?m)^return.*\n\z`).MatchString(body) {
			body += "return nil\n"
		}
		fmt.Fprintf(&blocks, "func block%d() error {\n%s}\n\n", n, body)
		fmt.Fprintf(&calls, "\tcheck(block%d())\n", n)
	}
	if n < atLeast {
		t.Fatalf("%d Go blocks found", n)
	}
	program := blocks.String() + `func check(err error) {
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		panic(err)
	}
}

func main() {
` + calls.String() + "\t" + check + "\n}\n"
	var imports strings.Builder
	for _, path := range []string{"context", "errors", "fmt", "io", "net/http", "net/http/httptest", "os", "os/signal", "strconv", "strings", "syscall", "time",
		"github.com/flockctx/flockctx", "github.com/flockctx/flockctx/lockedfile", "github.com/flockctx/flockctx/locker", "github.com/flockctx/flockctx/semaphore"} {
		if regexp.MustCompile(`\b` + path[strings.LastIndex(path, "/")+1:] + `\.`).MatchString(program) {
			fmt.Fprintf(&imports, "import %q\n", path)
		}
	}
	source := t.TempDir()
	file, exe := filepath.Join(source, "main.go"), filepath.Join(source, "blocks.exe")
	program = "package main\n\n" + imports.String() + "\n" + program
	must(t, os.WriteFile(file, []byte(program), 0o600))
	if out, err := exec.Command(goTool, "build", "-o", exe, file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, program)
	}
	run := exec.Command(exe)
	run.Dir = dir
	out, err := run.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, program)
	}
	return string(out)
}

// What the documents link to in this repository is there, and so are the headings.
func TestDocumentsNameWhatExists(t *testing.T) {
	docs := []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "bench/README.md"}
	for _, pattern := range []string{"docs/*.md", "bench/results/*.md"} {
		found, err := filepath.Glob(pattern)
		must(t, err)
		docs = append(docs, found...)
	}
	links := 0
	for _, doc := range docs {
		text, err := os.ReadFile(doc)
		must(t, err)
		for _, m := range regexp.MustCompile(`\]\(([^):#]*)(#[^)]+)?\)|go run (\./[\w./]+)`).FindAllStringSubmatch(string(text), -1) {
			path := filepath.Join(filepath.Dir(doc), m[1])
			switch {
			case m[3] != "":
				path = m[3]
			case m[1] == "":
				path = doc
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: %v", doc, err)
				continue
			}
			links++
			if m[2] != "" && !headings(t, path)[m[2]] {
				t.Errorf("%s: %s has no heading %s", doc, path, m[2])
			}
		}
	}
	if links < 50 {
		t.Errorf("%d links found", links)
	}
}

// headings returns the anchors of a document, as GitHub makes them.
func headings(t *testing.T, doc string) map[string]bool {
	text, err := os.ReadFile(doc)
	must(t, err)
	anchors := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		anchors["#"+strings.ReplaceAll(name, " ", "-")] = true
	}
	return anchors
}
