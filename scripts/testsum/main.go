// Testsum reads logs of "go test -v" and says what a person wants to know: which tests were
// skipped, and why; which failed, with their own output and the command that repeats each;
// and how many there were of each. Lines that begin with "SKIP: " count as well, from scripts
// that leave something out.
//
// Usage: testsum LOG…
package main

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

var (
	mark   = regexp.MustCompile(`^\s*=== (RUN|CONT|NAME|PAUSE)\s+(\S+)`)
	result = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+)`)
	end    = regexp.MustCompile(`^(ok|FAIL|\?)\s+(\S+/\S+)`)
)

type test struct {
	pkg, name, result string
	output            []string
}

// read returns the tests of a log and what a script says that it left out.
func read(path string) (tests []*test, left []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	running := make(map[string]*test)
	var done []*test
	var current *test
	of := func(name string) *test {
		t := running[name]
		if t == nil {
			t = &test{name: name}
			running[name] = t
		}
		return t
	}
	finish := func(pkg string) {
		for _, t := range running { // the process ended under them
			if t.result == "" {
				t.result = "FAIL"
				done = append(done, t)
			}
		}
		for _, t := range done {
			t.pkg = pkg
		}
		tests = append(tests, done...)
		done, current = nil, nil
		clear(running)
	}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := mark.FindStringSubmatch(line); m != nil {
			current = of(m[2])
		} else if m := result.FindStringSubmatch(line); m != nil {
			current = of(m[2])
			current.result = m[1]
			done = append(done, current)
		} else if m := end.FindStringSubmatch(line); m != nil {
			finish(m[2])
		} else if current != nil {
			current.output = append(current.output, line)
		} else if s, ok := strings.CutPrefix(line, "SKIP: "); ok {
			left = append(left, s)
		}
	}
	finish("")
	return tests, left, lines.Err()
}

// reason returns what a skipped test says of itself.
func (t *test) reason() string {
	var words []string
	for _, line := range t.output {
		if _, s, ok := strings.Cut(line, ": "); ok && strings.Contains(line, ".go:") {
			s = strings.TrimPrefix(strings.TrimPrefix(s, "SKIP: "), t.name+": ")
			words = append(words, strings.TrimSpace(s))
		}
	}
	return strings.Join(words, "; ")
}

func main() {
	count := make(map[string]int)
	var skipped []string
	var failed []*test
	for _, path := range os.Args[1:] {
		tests, left, err := read(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, "testsum:", err)
			os.Exit(2)
		}
		skipped = append(skipped, left...)
		for _, t := range tests {
			if t.result == "FAIL" && slices.ContainsFunc(tests, func(o *test) bool {
				return o.result == "FAIL" && o.pkg == t.pkg && strings.HasPrefix(o.name, t.name+"/")
			}) {
				continue // its subtest says more
			}
			count[t.result]++
			switch t.result {
			case "FAIL":
				failed = append(failed, t)
			case "SKIP":
				skipped = append(skipped, t.name+": "+t.reason())
			}
		}
	}
	slices.Sort(skipped)
	if skipped = slices.Compact(skipped); len(skipped) > 0 {
		fmt.Printf("\nSkipped:\n  %s\n", strings.Join(skipped, "\n  "))
	}
	const most = 60
	for _, t := range failed {
		fmt.Printf("\nFailed: %s\n", t.name)
		if len(t.output) > most {
			fmt.Printf("  … %d lines before\n", len(t.output)-most)
			t.output = t.output[len(t.output)-most:]
		}
		for _, line := range t.output {
			fmt.Println("  " + line)
		}
		if t.pkg != "" {
			names := strings.Split(t.name, "/")
			fmt.Printf("  again: go test -count=1 -run '^%s$' %s\n", strings.Join(names, "$/^"), t.pkg)
		}
	}
	fmt.Printf("\n%d passed, %d failed, %d skipped\n", count["PASS"], len(failed), count["SKIP"])
}
