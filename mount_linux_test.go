//go:build linux

package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// What locks do on a file system that does not answer, answers late, or answers wrongly:
// see the daemon in fuse_linux_test.go.

// A mount that does not answer holds up only those who use it.
func TestMountThatHangs(t *testing.T) {
	for _, goroutines := range []int{40, 200} {
		t.Run(fmt.Sprint(goroutines), func(t *testing.T) { withFUSE(t, "hung-mount", fmt.Sprint(goroutines)) })
	}
}

var _ = registerCommand("hung-mount", func(args []string) error {
	d, stop, err := startDaemon(args[0])
	if err != nil {
		return err
	}
	defer stop()
	if err := d.do("hang"); err != nil {
		return err
	}
	var goroutines int
	fmt.Sscan(args[1], &goroutines)
	hung := make(chan error, goroutines)
	for i := range goroutines {
		go func() {
			hung <- closed(flockctx.Lock(context.Background(), d.path(string(rune('a'+i%26))), nil))
		}()
	}
	time.Sleep(100 * time.Millisecond)
	dir, err := os.MkdirTemp("", "local")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "x")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for name, lock := range map[string]func(ctx context.Context) error{
		"Lock":     func(ctx context.Context) error { return closed(flockctx.Lock(ctx, path, nil)) },
		"TryLock":  func(context.Context) error { return closed(flockctx.TryLock(path, nil)) },
		"LockFile": func(ctx context.Context) error { return closed(flockctx.LockFile(ctx, f, nil)) },
		"LockAll": func(ctx context.Context) error {
			s, err := flockctx.LockAll(ctx, []string{path + "1", path + "2"}, nil)
			if err != nil {
				return err
			}
			return s.Close()
		},
	} {
		done := make(chan error, 1)
		ctx, cancel := context.WithTimeout(context.Background(), patience/2)
		go func() { done <- lock(ctx) }()
		err := <-done
		cancel()
		if err != nil {
			return fmt.Errorf("%s of a local file: %v", name, err)
		}
	}
	if n := len(hung); n > 0 {
		return fmt.Errorf("%d of the others did not hang: %v", n, <-hung)
	}
	stop() // ends their open(2)
	for range goroutines {
		<-hung // an error, or nil where it opened what lies below the mount
	}
	return nil
})

// closed closes what was locked.
func closed(l *flockctx.Flock, err error) error {
	if err == nil {
		err = l.Close()
	}
	return err
}

// A daemon that is deaf to interrupts keeps a wait in the kernel, as documented, but does
// not use up the user's queue of signals; and whatever it says in the end, the error is
// that of the context. Waits by polling keep their deadline.
func TestDaemonThatIsDeafToInterrupts(t *testing.T) { withFUSE(t, "deaf") }

var _ = registerCommand("deaf", func(args []string) error {
	d, stop, err := startDaemon(args[0], "locks")
	if err != nil {
		return err
	}
	defer stop()
	for _, mechanism := range mechanisms() {
		if err := d.do("busy"); err != nil {
			return err
		}
		for _, wait := range []flockctx.Wait{flockctx.WaitAuto, flockctx.WaitPoll} {
			err := endsBy(d.path("a"), &flockctx.Options{Wait: wait, Mechanism: mechanism}, 50*time.Millisecond)
			if !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("%v, %v: %v", mechanism, wait, err)
			}
		}
		// EIO, EAGAIN, EDEADLK, and the lock itself: all come too late.
		for _, answer := range []string{"fail 5", "fail 11", "fail 35", "free"} {
			if err := d.do("busy"); err != nil {
				return err
			}
			done := make(chan error, 1)
			go func() {
				done <- endsBy(d.path("a"), &flockctx.Options{Wait: flockctx.WaitBlock, Mechanism: mechanism}, 20*time.Millisecond)
			}()
			if err := waitUntil("it waits", func() bool { return flockctx.Blocked() == 1 }); err != nil {
				return err
			}
			before := queuedSignals()
			time.Sleep(500 * time.Millisecond)
			if n := queuedSignals(); n > before+20 { // other processes have some
				return fmt.Errorf("%d signals are queued, there were %d", n, before)
			}
			if len(done) > 0 {
				return fmt.Errorf("%v: returned before the daemon did: %v", mechanism, <-done)
			}
			if err := d.do(answer); err != nil {
				return err
			}
			err := <-done
			if _, ok := err.(*flockctx.BusyError); !ok || !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("%v, %s: got %v (%T), want a BusyError of the deadline", mechanism, answer, err, err)
			}
		}
	}
	return nil
})

// endsBy locks path and returns how that ended.
func endsBy(path string, o *flockctx.Options, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return closed(flockctx.Lock(ctx, path, o))
}

// queuedSignals returns how many signals are queued for this user.
func queuedSignals() (n int) {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "SigQ:") {
			fmt.Sscanf(line, "SigQ: %d/", &n)
		}
	}
	return n
}

// A wait in the kernel of a file system that may hang does not serve a goroutine behind
// it that wants to poll: the one in front changes to polling.
func TestPollerBehindAWaitInTheKernel(t *testing.T) { withFUSE(t, "poller-behind") }

var _ = registerCommand("poller-behind", func(args []string) error {
	// Without lock operations of the daemon's the kernel locks, and answers interrupts.
	d, stop, err := startDaemon(args[0])
	if err != nil {
		return err
	}
	defer stop()
	release, err := holdRaw(d.path("a"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	front := make(chan error, 1)
	go func() { front <- closed(flockctx.Lock(ctx, d.path("a"), inKernel())) }()
	if err := waitUntil("the front waits in the kernel", func() bool { return flockctx.Blocked() == 1 }); err != nil {
		return err
	}
	time.Sleep(2 * time.Millisecond)
	behind, leave := context.WithCancel(context.Background())
	defer leave()
	back := make(chan error, 1)
	go func() {
		back <- closed(flockctx.Lock(behind, d.path("a"), &flockctx.Options{Wait: flockctx.WaitPoll}))
	}()
	if err := waitUntil("the front polls", func() bool { return flockctx.Blocked() == 0 && flockctx.Pollers() == 1 }); err != nil {
		return err
	}
	leave()
	if err := <-back; !errors.Is(err, context.Canceled) {
		return fmt.Errorf("behind: %v", err)
	}
	if err := waitUntil("the front waits in the kernel again", func() bool { return flockctx.Blocked() == 1 }); err != nil {
		return err
	}
	release()
	return <-front
})

// Files to which the file system gives one inode number are two files all the same.
func TestSameInodeNumber(t *testing.T) { withFUSE(t, "same-inode") }

var _ = registerCommand("same-inode", func(args []string) error {
	d, stop, err := startDaemon(args[0], "same")
	if err != nil {
		return err
	}
	defer stop()
	a, b := d.path("a"), d.path("b")
	for _, mechanism := range mechanisms() {
		o := &flockctx.Options{Mechanism: mechanism}
		l, err := flockctx.TryLock(a, o)
		if err != nil {
			return err
		}
		if err := closed(flockctx.TryLock(b, o)); err != nil {
			return fmt.Errorf("%v: b while a is locked: %v", mechanism, err)
		}
		if err := closed(flockctx.TryLock(a, o)); !errors.Is(err, flockctx.ErrLocked) {
			return fmt.Errorf("%v: a twice: %v", mechanism, err)
		}
		if err := l.Close(); err != nil {
			return err
		}
		// Either both are locked, or there is an error; and a twice is one lock.
		s, err := flockctx.LockAll(context.Background(), []string{a, b, a}, o)
		if errors.Is(err, errors.ErrUnsupported) {
			continue
		}
		if err != nil {
			return err
		}
		if n := len(s.Files()); n != 2 {
			return fmt.Errorf("%v: %d files in the set", mechanism, n)
		}
		for _, path := range []string{a, b} {
			if free(path, mechanism) {
				return fmt.Errorf("%v: LockAll says that %s is locked, and it is not", mechanism, path)
			}
		}
		if err := s.Close(); err != nil {
			return err
		}
		if !free(a, mechanism) || !free(b, mechanism) {
			return fmt.Errorf("%v: not free after Close", mechanism)
		}
	}
	return nil
})

// free reports whether the kernel has no lock on the file.
func free(path string, m flockctx.Mechanism) bool {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	defer unix.Close(fd)
	if m == flockctx.OFD {
		return unix.FcntlFlock(uintptr(fd), 37, &unix.Flock_t{Type: unix.F_WRLCK}) == nil // F_OFD_SETLK
	}
	return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil
}

// Two files of one number on two mounts are two files.
func TestSameInodeOnTwoMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: mounting needs root")
	}
	type file struct {
		path string
		dev  uint64
	}
	seen := make(map[uint64][]file)
	for range 2 {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Skip("SKIP: cannot mount a tmpfs: ", err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		for i := range 5 {
			path := filepath.Join(dir, fmt.Sprint(i))
			must(t, os.WriteFile(path, nil, 0o600))
			var st unix.Stat_t
			must(t, unix.Stat(path, &st))
			seen[st.Ino] = append(seen[st.Ino], file{path, uint64(st.Dev)})
		}
	}
	checked := 0
	for _, files := range seen {
		if len(files) < 2 {
			continue
		}
		checked++
		a, err := flockctx.TryLock(files[0].path, nil)
		must(t, err)
		b, err := flockctx.TryLock(files[1].path, nil)
		if err != nil {
			t.Fatalf("two files with one inode number: %v", err)
		}
		s, err := flockctx.LockAll(t.Context(), []string{files[0].path + "x", files[1].path + "x"}, nil)
		must(t, err)
		if n := len(s.Files()); n != 2 {
			t.Errorf("%d files in the set", n)
		}
		must(t, s.Close())
		must(t, b.Close())
		must(t, a.Close())
	}
	if checked == 0 {
		t.Skip("SKIP: the mounts number their files differently")
	}
}
