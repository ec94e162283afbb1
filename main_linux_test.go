//go:build linux

package flockctx_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

func countDescriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(entries)
}

func listDescriptors() string {
	var b strings.Builder
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		fmt.Fprintf(&b, " %s=%s", e.Name(), target)
	}
	return b.String()
}

func countThreads() int {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		panic(err)
	}
	return len(entries)
}

// hold takes the lock on path as another process would: on an open file that the
// package does not know. It returns how to release it.
func hold(t testing.TB, path string) (release func()) {
	t.Helper()
	release, err := holdRaw(path)
	must(t, err)
	t.Cleanup(release)
	return release
}

func holdRaw(path string) (release func(), err error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { unix.Close(fd) }), nil
}

// run runs a command in a process of its own, started by wrapper.
func run(t *testing.T, name string, args []string, wrapper ...string) {
	t.Helper()
	cmd := newCommand(t, name, args, wrapper...)
	must(t, cmd.Start())
	hung := time.AfterFunc(patience, func() { cmd.Process.Signal(unix.SIGQUIT) })
	defer hung.Stop()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// waitUntil is eventually for a command.
func waitUntil(what string, cond func() bool) error {
	for end := time.Now().Add(patience / 2); !cond(); {
		if time.Now().After(end) {
			return fmt.Errorf("never: %s; %d in the kernel, %d poll", what, flockctx.Blocked(), flockctx.Pollers())
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// inKernel are options for a wait that must be in the kernel, whatever file system
// the tests run on: with WaitAuto it polls where the file system is not known.
func inKernel() *flockctx.Options { return &flockctx.Options{Wait: flockctx.WaitBlock} }
