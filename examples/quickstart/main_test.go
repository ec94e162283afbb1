package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "wait" {
		main() // as one of the processes
		return
	}
	os.Exit(m.Run())
}

func TestTheStory(t *testing.T) {
	var out strings.Builder
	if err := direct(t.Context(), &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	story := regexp.MustCompile(`(?m)^ *\d+ ms  `).ReplaceAllString(out.String(), "")
	story = regexp.MustCompile(`after \d+(\.\d+)?m?s`).ReplaceAllString(story, "after a while")
	const want = `this program starts processes that want the lock of one file
Anna wants the lock
Anna has the lock
Ben wants the lock
Ben gives up at its deadline, after a while
Cleo wants the lock
this program cancels Cleo
Cleo stops waiting, because it was cancelled, after a while
Dora wants the lock
this program kills Anna, who has the lock
Dora has the lock
Dora releases the lock
`
	if story != want {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}
}
