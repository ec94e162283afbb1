//go:build linux

package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// What the system can answer, with the answer put into its mouth by seccomp(2), in a
// process of its own.

// answer has system call nr fail with errno in all threads from now on: where its
// second argument has one of the bits of mask set, or for mask 0 always.
func answer(nr uintptr, mask uint32, errno unix.Errno) error {
	return answerArgument(nr, 1, mask, errno)
}

// answerArgument is answer for an argument of any index.
func answerArgument(nr uintptr, index uint32, mask uint32, errno unix.Errno) error {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jump  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		bits  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
		allow = 0x7fff0000
		fail  = 0x00050000
	)
	argument := 16 + 8*index // offset of its low half in struct seccomp_data
	prog := []unix.SockFilter{
		{Code: load, K: 0},
		{Code: jump, K: uint32(nr), Jf: 3},
		{Code: load, K: argument},
		{Code: bits, K: mask, Jf: 1},
		{Code: ret, K: fail | uint32(errno)},
		{Code: ret, K: allow},
	}
	if mask == 0 {
		prog[3] = unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	p := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	const setModeFilter, tsync = 1, 1
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, tsync, uintptr(unsafe.Pointer(&p))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}

// faults are answers that end a wait, and what their errors match.
var faults = []struct {
	errno       unix.Errno
	unsupported bool
}{
	{unix.ENOLCK, false},
	{unix.EDEADLK, false},
	{unix.EIO, false},
	{unix.EBADF, false},
	{unix.EACCES, false}, // which is "busy" on CIFS alone
	{unix.EPERM, false},
	{unix.ENOSYS, true},
	{unix.EOPNOTSUPP, true},
}

// ENOLCK and its like end the wait, and are no timeout.
func TestFaultsEndTheWait(t *testing.T) {
	for _, f := range faults {
		for _, when := range []string{"first", "kernel", "poll"} {
			t.Run(fmt.Sprintf("%v,%s", f.errno, when), func(t *testing.T) {
				t.Parallel()
				run(t, "fault", []string{tempPath(t), strconv.Itoa(int(f.errno)), strconv.FormatBool(f.unsupported), when})
			})
		}
	}
}

var _ = registerCommand("fault", func(args []string) error {
	path, when := args[0], args[3]
	n, _ := strconv.Atoi(args[1])
	errno := unix.Errno(n)
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	o := &flockctx.Options{}
	before := countDescriptors()
	var err error
	switch when {
	case "first":
		if err := answer(unix.SYS_FLOCK, 0, errno); err != nil {
			return err
		}
		_, err = flockctx.Lock(ctx, path, o)
	case "kernel": // LOCK_NB says that it is busy, and the wait fails
		o.Wait = flockctx.WaitBlock
		if err := answer(unix.SYS_FLOCK, unix.LOCK_EX|unix.LOCK_SH, errno); err != nil {
			return err
		}
		if err := answer(unix.SYS_FLOCK, unix.LOCK_NB, unix.EWOULDBLOCK); err != nil {
			return err
		}
		// Of two filters that fail a call the one installed last answers.
		_, err = flockctx.Lock(ctx, path, o)
	case "poll": // busy for a while, and then it fails
		release, rerr := holdRaw(path)
		if rerr != nil {
			return rerr
		}
		defer release()
		before = countDescriptors()
		o.Wait = flockctx.WaitPoll
		done := make(chan error, 1)
		go func() { _, err := flockctx.Lock(ctx, path, o); done <- err }()
		if err := waitUntil("it polls", func() bool { return flockctx.Pollers() == 1 }); err != nil {
			return err
		}
		if err := answer(unix.SYS_FLOCK, 0, errno); err != nil {
			return err
		}
		select {
		case err = <-done:
		case <-time.After(patience / 2):
			return errors.New("it polls on")
		}
	}
	pathErr, ok := err.(*fs.PathError)
	if !ok || pathErr.Path != path || pathErr.Op != "lock" || !errors.Is(err, errno) {
		return fmt.Errorf("got %v (%T), want an *fs.PathError of lock and the path that matches %v", err, err, errno)
	}
	if errors.Is(err, errors.ErrUnsupported) != (args[2] == "true") {
		return fmt.Errorf("%v: matches ErrUnsupported: %v", err, args[2] != "true")
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, flockctx.ErrLocked) || pathErr.Timeout() {
		return fmt.Errorf("%v: a refusal that looks like a timeout", err)
	}
	if after := countDescriptors(); after > before+4 { // the poller's come with the first file
		return fmt.Errorf("%d descriptors before, %d after", before, after)
	}
	if n := flockctx.Queues(); n != 0 {
		return fmt.Errorf("%d queues are left", n)
	}
	return nil
})

// A server that has forgotten a file says ESTALE. A path is then opened again: here in
// vain, so the context ends that, and the error says what went wrong meanwhile. A file of
// the caller's cannot be opened again, nor can a lock be converted that is gone: that is
// an error at once, which names the server's answer.
func TestForgottenFile(t *testing.T) {
	run(t, "forgotten", []string{tempPath(t)})
}

var _ = registerCommand("forgotten", func(args []string) error {
	path := args[0]
	l := flockctx.New(path, &flockctx.Options{Mode: flockctx.Shared})
	if err := l.Lock(context.Background()); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := answer(unix.SYS_FLOCK, 0, unix.ESTALE); err != nil {
		return err
	}
	for name, call := range map[string]func() error{
		"lock":    func() error { return closed(flockctx.TryLockFile(f, &flockctx.Options{Mode: flockctx.Shared})) },
		"convert": func() error { return l.Convert(context.Background(), flockctx.Exclusive) },
		"unlock":  func() error { return flockctx.UnlockFile(f, nil) },
	} {
		start := time.Now()
		err := call()
		pathErr, ok := err.(*fs.PathError)
		if !ok || pathErr.Op != name || pathErr.Path != path || !errors.Is(err, unix.ESTALE) || time.Since(start) > patience/2 {
			return fmt.Errorf("%s: %v (%T) after %v", name, err, err, time.Since(start))
		}
	}
	l.Close()
	cause := errors.New("the reason")
	ctx, cancel := context.WithTimeoutCause(context.Background(), 2*time.Second, cause)
	defer cancel()
	for name, lock := range map[string]func() error{
		"Lock":    func() error { return closed(flockctx.Lock(ctx, path, nil)) },
		"LockAll": func() error { return second(flockctx.LockAll(ctx, []string{path}, nil)) },
	} {
		err := lock()
		busy, ok := err.(*flockctx.BusyError)
		if !ok || !busy.Timeout() || !errors.Is(err, cause) {
			return fmt.Errorf("%s: %v (%T), want a timeout with its cause", name, err, err)
		}
		if name == "Lock" && !strings.Contains(err.Error(), "no stable inode numbers") {
			return fmt.Errorf("%s: %v, which does not say why", name, err)
		}
		ctx, cancel = context.WithTimeoutCause(context.Background(), 2*time.Second, cause)
		defer cancel()
	}
	return nil
})

// Some FUSE daemons hand out errno 512, which means EINTR.
func TestErrno512IsAnInterruption(t *testing.T) {
	run(t, "errno512", []string{tempPath(t)})
}

var _ = registerCommand("errno512", func(args []string) error {
	release, err := holdRaw(args[0])
	if err != nil {
		return err
	}
	defer release()
	// A blocking call has no LOCK_NB: fail those that have none of the bits 4 and 8.
	if err := answer(unix.SYS_FLOCK, unix.LOCK_EX|unix.LOCK_SH, 512); err != nil {
		return err
	}
	if err := answer(unix.SYS_FLOCK, unix.LOCK_NB, unix.EWOULDBLOCK); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err = flockctx.Lock(ctx, args[0], inKernel()); !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("got %v", err)
	}
	return nil
})

// A system without OFD locks says so.
func TestNoOFDLocks(t *testing.T) {
	run(t, "no-ofd", []string{tempPath(t)})
}

var _ = registerCommand("no-ofd", func(args []string) error {
	fcntl := uintptr(unix.SYS_FCNTL)
	switch runtime.GOARCH {
	case "386", "arm":
		fcntl = 221 // fcntl64(2)
	}
	if err := answer(fcntl, 32, unix.EINVAL); err != nil { // F_OFD_SETLK is 37
		return err
	}
	_, err := flockctx.Lock(context.Background(), args[0], &flockctx.Options{Mechanism: flockctx.OFD})
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != args[0] || !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("got %v (%T)", err, err)
	}
	return nil
})

// The same answer as in TestFileOfSomebodyElseInAStickyDirectory, on systems that do
// not give it: whoever may write a file need not be allowed O_CREATE.
func TestNoCreateOfAFileThatExists(t *testing.T) {
	path := tempPath(t)
	must(t, os.WriteFile(path, nil, 0o600))
	run(t, "no-create", []string{path})
}

var _ = registerCommand("no-create", func(args []string) error {
	if err := answerArgument(unix.SYS_OPENAT, 2, unix.O_CREAT, unix.EACCES); err != nil {
		return err
	}
	return lockForWriting(args[0])
})

// An Unlock that fails leaves the lock, and may be called again.
func TestUnlockThatFails(t *testing.T) {
	run(t, "unlock-fails", []string{tempPath(t)})
}

var _ = registerCommand("unlock-fails", func(args []string) error {
	path := args[0]
	ctx := context.Background()
	l := flockctx.New(path, nil)
	if err := l.Lock(ctx); err != nil {
		return err
	}
	waiting := make(chan error, 1)
	go func() { waiting <- l.Lock(ctx) }()
	if err := waitUntil("a goroutine waits", func() bool { return flockctx.HandleWaiters(l) == 1 }); err != nil {
		return err
	}
	if err := answer(unix.SYS_FLOCK, unix.LOCK_UN, unix.EIO); err != nil {
		return err
	}
	for range 2 {
		err := l.Unlock()
		if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Op != "unlock" || pathErr.Path != path || !errors.Is(err, unix.EIO) {
			return fmt.Errorf("Unlock: %v (%T)", err, err)
		}
		if !l.Locked() {
			return errors.New("not locked after an Unlock that failed")
		}
	}
	if _, err := flockctx.TryLock(path, nil); !errors.Is(err, flockctx.ErrLocked) {
		return fmt.Errorf("another handle: %v", err)
	}
	select {
	case err := <-waiting:
		return fmt.Errorf("the waiter: %v", err)
	default:
	}
	// Close says what failed, and the lock goes with the file.
	err := l.Close()
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Op != "unlock" || pathErr.Path != path || !errors.Is(err, unix.EIO) {
		return fmt.Errorf("Close: %v (%T)", err, err)
	}
	if err := <-waiting; !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("the waiter after Close: %v", err)
	}
	free, err := flockctx.TryLock(path, nil)
	if err != nil {
		return fmt.Errorf("after Close: %v", err)
	}
	if err := free.Close(); !errors.Is(err, unix.EIO) {
		return err
	}
	return nil
})

// Over NFS flock(2) is a byte-range lock, for which an exclusive one needs
// a file open for writing: EBADF, said clearly. (What such a file system does is
// answered here; docs/semantics.md has the rest.)
func TestReadOnlyDescriptorOverNFS(t *testing.T) {
	run(t, "nfs", []string{tempPath(t)})
}

var _ = registerCommand("nfs", func(args []string) error {
	if err := os.WriteFile(args[0], nil, 0o600); err != nil {
		return err
	}
	if err := answer(unix.SYS_FLOCK, unix.LOCK_EX, unix.EBADF); err != nil {
		return err
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = flockctx.TryLockFile(f, nil)
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Path != args[0] || !errors.Is(err, unix.EBADF) {
		return fmt.Errorf("got %v (%T)", err, err)
	}
	l, err := flockctx.TryLockFile(f, &flockctx.Options{Mode: flockctx.Shared})
	if err != nil {
		return err
	}
	return l.Close()
})
