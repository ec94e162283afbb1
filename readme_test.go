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

// Every Go block of the README is compiled, as the body of a function that has ctx
// unless it makes one, and run.
func TestReadme(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles a program")
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	readme, err := os.ReadFile("README.md")
	must(t, err)
	var blocks, calls strings.Builder
	n := 0
	for _, block := range codeBlock.FindAllStringSubmatch(string(readme), -1) {
		if block[1] != "go" {
			continue
		}
		n++
		body := block[2]
		if !strings.Contains(body, "ctx, cancel :=") && regexp.MustCompile(`\bctx\b`).MatchString(body) {
			body = "ctx := context.Background()\n" + body
		}
		if !regexp.MustCompile(`(?m)^return.*\n\z`).MatchString(body) {
			body += "return nil\n"
		}
		fmt.Fprintf(&blocks, "func block%d() error {\n%s}\n\n", n, body)
		fmt.Fprintf(&calls, "\tcheck(block%d())\n", n)
	}
	if n < 4 {
		t.Fatalf("%d Go blocks found", n)
	}
	program := blocks.String() + `func check(err error) {
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		panic(err)
	}
}

func main() {
` + calls.String() + "}\n"
	var imports strings.Builder
	for _, path := range []string{"context", "errors", "fmt", "io", "os", "strconv", "strings", "time", "github.com/flockctx/flockctx"} {
		if strings.Contains(program, path[strings.LastIndex(path, "/")+1:]+".") {
			fmt.Fprintf(&imports, "import %q\n", path)
		}
	}
	dir := t.TempDir()
	file, exe := filepath.Join(dir, "main.go"), filepath.Join(dir, "readme.exe")
	program = "package main\n\n" + imports.String() + "\n" + program
	must(t, os.WriteFile(file, []byte(program), 0o600))
	if out, err := exec.Command(goTool, "build", "-o", exe, file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, program)
	}
	must(t, os.WriteFile(filepath.Join(dir, "counter"), []byte("99\n"), 0o600))
	run := exec.Command(exe)
	run.Dir = dir
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, program)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "counter")); err != nil || string(b) != "100\n" {
		t.Errorf("the counter is %q, %v", b, err)
	}
}

// What the documents link to in this repository is there.
func TestDocumentsNameWhatExists(t *testing.T) {
	docs, err := filepath.Glob("docs/*.md")
	must(t, err)
	for _, doc := range append(docs, "README.md", "CHANGELOG.md") {
		text, err := os.ReadFile(doc)
		must(t, err)
		for _, m := range regexp.MustCompile(`\]\(([^):#]+)\)|go run (\./\S+)`).FindAllStringSubmatch(string(text), -1) {
			path := filepath.Join(filepath.Dir(doc), m[1])
			if m[2] != "" {
				path = m[2]
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: %v", doc, err)
			}
		}
	}
}
