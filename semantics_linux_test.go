//go:build linux

package flockctx_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// A lease makes open(2) wait until its holder gives it up, or for 45 s. No context
// could end that.
func TestALeaseIsWaitedOutWithinTheContext(t *testing.T) {
	signal.Ignore(syscall.SIGIO) // with which the kernel asks for the lease back
	defer signal.Reset(syscall.SIGIO)
	path := tempPath(t)
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("SKIP: %s: no leases on this file system: %v", t.Name(), err)
	}
	_, err = flockctx.TryLock(path, nil)
	wantErr(t, err, flockctx.ErrLocked)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = flockctx.Lock(ctx, path, nil)
	wantErr(t, err, context.DeadlineExceeded)

	done := async(func() error {
		l, err := flockctx.Lock(t.Context(), path, nil)
		if err == nil {
			err = l.Close()
		}
		return err
	})
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	must(t, err)
	must(t, soon(t, done, "Lock after the lease"))
}

// The same for a user who may only read the file: that it must not be written is no
// answer while the lease keeps it from being read.
func TestALeaseOnAFileThatCannotBeWritten(t *testing.T) {
	signal.Ignore(syscall.SIGIO)
	defer signal.Reset(syscall.SIGIO)
	path := filepath.Join(publicDir(t, 0o755), "file")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Chmod(0o444))
	cmd := newCommand(t, "leased", []string{path})
	asNobody(t, cmd)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("SKIP: %s: no leases on this file system: %v", t.Name(), err)
	}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	hung := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer hung.Stop()
	line, _ := bufio.NewReader(out).ReadString('\n')
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	must(t, err)
	if err := cmd.Wait(); line != "waits\n" || err != nil {
		t.Errorf("%q, then %v", line, err)
	}
}

var _ = registerCommand("leased", func(args []string) error {
	path := args[0]
	if _, err := flockctx.TryLock(path, nil); !errors.Is(err, flockctx.ErrLocked) {
		return fmt.Errorf("TryLock: %v, want ErrLocked", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := flockctx.Lock(ctx, path, nil); !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("Lock: %v, want the deadline", err)
	}
	done := make(chan error, 1)
	go func() { _, err := flockctx.Lock(context.Background(), path, nil); done <- err }()
	if err := waitUntil("it waits", func() bool { return flockctx.Pollers() == 1 }); err != nil {
		return err
	}
	fmt.Println("waits")
	return <-done
})
