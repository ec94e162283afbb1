package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write docs/cli-cases.md anew")

// flockctx is the command, built by TestMain.
var flockctxPath string

func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "helper" {
		var err error
		if os.Args[2] == "fuse" {
			err = serveFUSE(os.Args[3], os.Args[4], os.Args[5])
		} else {
			err = helper(os.Args[2], os.Args[3])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Under nohup or in the background of a script, signals are ignored, and would be
	// by the commands that the tests start. With a handler here they have the default.
	for _, sig := range []os.Signal{unix.SIGHUP, unix.SIGINT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	flag.Parse()
	dir, err := os.MkdirTemp("", "flockctx-test-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	// Every user may run it: some tests become another one.
	os.Chmod(dir, 0o755)
	flockctxPath = filepath.Join(dir, "flockctx")
	out, err := exec.Command("go", "build", "-o", flockctxPath, ".").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v: %s", err, out)
		os.Exit(2)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// call calls Main in this process.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(context.Background(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// bash runs a script with $F and $FLOCKCTX set to the command, in dir.
func bash(t *testing.T, dir, tool, script string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "H="+testBinary(t)+" helper", "F="+tool, "SHELL=/bin/sh", "LC_ALL=C", "FLOCKCTX="+flockctxPath)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func testBinary(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

// helper is a process that does to path what no command of the system does. Once it
// has what it wants it says "ready", and stays until it is killed.
func helper(verb, path string) error {
	if verb == "socket" {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	lk := &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 5}
	switch verb {
	case "posix":
		err = unix.FcntlFlock(f.Fd(), unix.F_SETLKW, lk)
	case "posix-read":
		err = unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_RDLCK, Start: 100})
	case "ofd":
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, lk)
	case "lease":
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	default:
		err = fmt.Errorf("no helper %q", verb)
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		time.Sleep(time.Hour)
	}
}
