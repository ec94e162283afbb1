package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flockctx/flockctx"
)

const runOnly = "FLOCKCTX_EXAMPLE_ONLY"

func TestMain(m *testing.M) {
	if path := os.Getenv(runOnly); path != "" {
		if _, err := only(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("runs")
		io.Copy(io.Discard, os.Stdin)
		return // without releasing the lock, as a crash does
	}
	os.Exit(m.Run())
}

func TestASecondOneEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	// A file that a crash left over does not matter.
	if err := os.WriteFile(path, []byte("4711 and a long line that is gone afterwards\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := exec.Command(os.Args[0])
	first.Env = append(os.Environ(), runOnly+"="+path)
	stdin, err := first.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	defer first.Process.Kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "runs\n" {
		t.Fatalf("%q, %v", line, err)
	}

	if _, err := flockctx.Holders(path); err == nil {
		// The file may still be that of a crash when the second one looks.
		if err := os.WriteFile(path, []byte("4711\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err = only(path)
	want := fmt.Sprintf("runs already, as pid %d: ", first.Process.Pid)
	if !errors.Is(err, flockctx.ErrLocked) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}

	stdin.Close()
	if err := first.Wait(); err != nil {
		t.Fatal(err)
	}
	l, err := only(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if b, err := os.ReadFile(path); err != nil || string(b) != fmt.Sprintln(os.Getpid()) {
		t.Errorf("%q, %v", b, err)
	}
}
