//go:build unix

// Package examples_test runs the example programs as a user does at first: with arguments
// that they do not have, and with a signal to end.
package examples_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// build returns the program of an example.
func build(t *testing.T, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIP: it builds programs")
	}
	bin := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", "build", "-o", bin, ".")
	cmd.Dir = name
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

func TestBadArguments(t *testing.T) {
	for name, cases := range map[string][]string{
		"flockcontext": {"", "-h", "a b"},
		"quickstart":   {"-h", "wait", "anything"},
		"singleton":    {"-nonsense", "anything"},
		"timeout":      {"", "-nonsense", "-wait -1s x", "-wait soon x", "a b"},
		"worker":       {"-nonsense", "anything", "-workers 0", "-job -1s"},
		"httpserver":   {"-nonsense", "anything"},
		"replicas":     {"-nonsense", "anything"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bin := build(t, name)
			for _, args := range cases {
				cmd := exec.Command(bin, strings.Fields(args)...)
				cmd.Dir = t.TempDir()
				out, _ := cmd.CombinedOutput()
				if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(strings.ToLower(string(out)), "usage") {
					t.Errorf("%q: it ends with %v and says %q", args, cmd.ProcessState, out)
				}
				if left, _ := os.ReadDir(cmd.Dir); len(left) > 0 {
					t.Errorf("%q: it has left %v", args, left)
				}
			}
		})
	}
}

func TestTermination(t *testing.T) {
	for name, c := range map[string]struct{ args, says string }{
		"singleton":  {"", "runs"},
		"timeout":    {"-hold 1h x", "locked after"},
		"worker":     {"-job 10ms", "works"},
		"httpserver": {"-addr localhost:0 -debug localhost:0 -metrics localhost:0", "/debug/locks"},
		"replicas":   {"-addr localhost:0 -locks .", "http://"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(build(t, name), strings.Fields(c.args)...)
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+cmd.Dir, "HOME="+cmd.Dir)
			log, err := os.Create(filepath.Join(t.TempDir(), "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			cmd.Stdout, cmd.Stderr = log, log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			said := func() []byte {
				text, err := os.ReadFile(log.Name())
				if err != nil {
					t.Fatal(err)
				}
				return text
			}
			for limit := time.Now().Add(time.Minute); !bytes.Contains(said(), []byte(c.says)); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(limit) {
					t.Fatalf("it says %q", said())
				}
			}
			cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Errorf("it ends with %v and says %q", err, said())
			}
		})
	}
}
