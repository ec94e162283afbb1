//go:build linux

package flockctx_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// Beside locks that this package did not take.

// flock(1) and this package exclude each other.
func TestFlockProgram(t *testing.T) {
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("SKIP: no flock(1)")
	}
	path := tempPath(t)
	try := func(option string) bool {
		t.Helper()
		err := exec.Command("flock", "-n", option, path, "true").Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
			t.Fatal(err)
		}
		return err == nil
	}
	l := mustLock(t, path, nil)
	if try("-x") || try("-s") {
		t.Error("flock(1) got a lock beside an exclusive one")
	}
	must(t, l.Convert(t.Context(), flockctx.Shared))
	if try("-x") || !try("-s") {
		t.Error("flock(1) beside a shared lock")
	}
	must(t, l.Unlock())
	if !try("-x") {
		t.Error("flock(1) does not get a lock that is free")
	}
	cmd := exec.Command("flock", path, "cat")
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	eventually(t, "flock(1) has the lock", func() bool {
		err := l.TryLock()
		if err == nil {
			must(t, l.Unlock())
		}
		return errors.Is(err, flockctx.ErrLocked)
	})
	done := async(func() error { return l.Lock(t.Context()) })
	eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
	stdin.Close()
	must(t, cmd.Wait())
	must(t, soon(t, done, "Lock after flock(1) ended"))
}

// OFD locks and POSIX record locks of other processes exclude each other.
func TestPOSIXLocksOfOtherProcesses(t *testing.T) {
	path := tempPath(t)
	o := &flockctx.Options{Mechanism: flockctx.OFD, Start: 100, Length: 10}
	l := mustLock(t, path, o)
	try := func(start int64) string {
		t.Helper()
		out, err := newCommand(t, "posix", []string{path, fmt.Sprint(start), "try"}).Output()
		must(t, err)
		return strings.TrimSpace(string(out))
	}
	if got := try(105); got != "locked" {
		t.Errorf("POSIX lock in the range: %s", got)
	}
	if got := try(110); got != "ok" {
		t.Errorf("POSIX lock behind the range: %s", got)
	}
	must(t, l.Unlock())
	if got := try(105); got != "ok" {
		t.Errorf("POSIX lock in the range after Unlock: %s", got)
	}

	cmd := newCommand(t, "posix", []string{path, "109", "hold"})
	stdin, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	b := make([]byte, 3)
	_, err = out.Read(b)
	must(t, err)
	wantErr(t, l.TryLock(), flockctx.ErrLocked)
	done := async(func() error { return l.Lock(t.Context()) })
	eventually(t, "it waits", func() bool { return flockctx.WaitingOutside() == 1 })
	stdin.Close()
	must(t, soon(t, done, "Lock after the POSIX lock is gone"))
	must(t, cmd.Wait())
}

var _ = registerCommand("posix", func(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	start, _ := strconv.ParseInt(args[1], 10, 64)
	err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: start, Len: 1})
	if err == unix.EAGAIN || err == unix.EACCES {
		fmt.Println("locked")
		return nil
	}
	fmt.Println("ok")
	if args[2] == "hold" {
		os.Stdin.Read(make([]byte, 1))
	}
	return err
})
