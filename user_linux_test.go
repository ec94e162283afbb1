//go:build linux

package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// What the permissions of a file are for: another user. The tests run as root, and
// the command that locks as nobody.

const nobody = 65534

// needOtherUser skips the test where the process cannot become another user: it is not
// root, or alone in its user namespace.
func needOtherUser(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("SKIP: %s: only root can become another user", t.Name())
	}
	users, err := os.ReadFile("/proc/self/uid_map")
	must(t, err)
	for line := range strings.Lines(string(users)) {
		var first, outside, count int64
		if _, err := fmt.Sscan(line, &first, &outside, &count); err == nil && first <= nobody && nobody < first+count {
			return
		}
	}
	t.Skipf("SKIP: %s: there is no other user in the namespace", t.Name())
}

// asNobody has cmd, of newCommand, run as another user, or skips the test.
func asNobody(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	needOtherUser(t)
	// The test binary's own directory may be closed to others.
	cmd.Path = "/proc/self/exe"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// runAsNobody is run as another user.
func runAsNobody(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := newCommand(t, name, args)
	asNobody(t, cmd)
	must(t, cmd.Start())
	hung := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer hung.Stop()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// publicDir makes a directory with these permissions that other users can reach, or
// skips the test. (Those of T.TempDir are closed to others.)
func publicDir(t *testing.T, perm fs.FileMode) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "flockctx-test")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, perm))
	for d := dir; d != filepath.Dir(d); d = filepath.Dir(d) {
		st, err := os.Stat(d)
		must(t, err)
		if st.Mode()&1 == 0 {
			t.Skipf("SKIP: %s: other users cannot reach %s", t.Name(), d)
		}
	}
	return dir
}

// A file that cannot be written is locked read-only.
func TestReadOnlyFileOfSomebodyElse(t *testing.T) {
	path := filepath.Join(publicDir(t, 0o755), "file")
	must(t, os.WriteFile(path, []byte("x"), 0o444))
	runAsNobody(t, "read-only", path)
}

var _ = registerCommand("read-only", func(args []string) error {
	if f, err := os.OpenFile(args[0], os.O_RDWR, 0); err == nil {
		f.Close()
		return errors.New("the file can be opened for writing, so this tests nothing")
	}
	l, err := flockctx.Lock(context.Background(), args[0], nil)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := l.File().Read(b); err != nil || string(b) != "x" {
		return fmt.Errorf("read %q, %v", b, err)
	}
	if _, err := flockctx.TryLock(args[0], nil); !errors.Is(err, flockctx.ErrLocked) {
		return fmt.Errorf("beside it: %v, want ErrLocked", err)
	}
	return l.Close()
})

// In a sticky directory that everybody may write, as /tmp is, Linux refuses O_CREATE
// on a file that belongs neither to the caller nor to the directory's owner.
func TestFileOfSomebodyElseInAStickyDirectory(t *testing.T) {
	setting, err := os.ReadFile("/proc/sys/fs/protected_regular")
	if err != nil || strings.TrimSpace(string(setting)) == "0" {
		t.Skipf("SKIP: %s: fs.protected_regular is %q, %v", t.Name(), setting, err)
	}
	path := filepath.Join(publicDir(t, 0o777|fs.ModeSticky), "file")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Chmod(path, 0o666))
	if os.Geteuid() == 0 {
		must(t, os.Chown(path, 1, 1))
	}
	runAsNobody(t, "sticky", path)
}

var _ = registerCommand("sticky", func(args []string) error { return lockForWriting(args[0]) })

// lockForWriting locks a file that may be opened for writing, but not with O_CREATE.
func lockForWriting(path string) error {
	if f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); !errors.Is(err, fs.ErrPermission) {
		f.Close()
		return fmt.Errorf("O_CREATE: %v, want a refusal, or this tests nothing", err)
	}
	l, err := flockctx.Lock(context.Background(), path, nil)
	if err != nil {
		return err
	}
	if _, err := l.File().WriteString("x"); err != nil {
		return fmt.Errorf("not open for writing: %v", err)
	}
	return l.Close()
}

// A program that gives up its rights while it holds a lock keeps it: that the path cannot
// be looked at any more is no reason to give it up. And it can be released.
func TestPrivilegesThatAreDropped(t *testing.T) {
	needOtherUser(t)
	for _, mechanism := range mechanisms() {
		path := filepath.Join(publicDir(t, 0o755), "private", "file")
		must(t, os.Mkdir(filepath.Dir(path), 0o700))
		run(t, "drop", []string{path, fmt.Sprint(int(mechanism))})
	}
}

var _ = registerCommand("drop", func(args []string) error {
	path := args[0]
	o := &flockctx.Options{Mode: flockctx.Shared, Remove: true}
	fmt.Sscan(args[1], (*int)(&o.Mechanism))
	l := flockctx.New(path, o)
	if err := l.Lock(context.Background()); err != nil {
		return err
	}
	other := flockctx.New(path, o)
	if err := errors.Join(other.Lock(context.Background()), other.Unlock()); err != nil {
		return err
	}
	if err := syscall.Seteuid(nobody); err != nil {
		return err
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("stat: %v, want a refusal, or this tests nothing", err)
	}
	for _, mode := range []flockctx.Mode{flockctx.Exclusive, flockctx.Shared, flockctx.Exclusive} {
		if err := l.Convert(context.Background(), mode); err != nil || !l.Locked() || l.Mode() != mode {
			return fmt.Errorf("Convert to %v: %v; locked %v, %v", mode, err, l.Locked(), l.Mode())
		}
	}
	if err := other.TryLock(); !errors.Is(err, flockctx.ErrLocked) {
		return fmt.Errorf("beside it: %v, want ErrLocked", err)
	}
	// Close cannot remove the file, and says so; the lock is gone.
	err := l.Close()
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Op != "remove" || !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("Close: %v", err)
	}
	// A new lock needs the path. It is refused, and nothing of it stays.
	if err := other.TryLock(); !errors.Is(err, fs.ErrPermission) || other.Locked() {
		return fmt.Errorf("a Lock of the path: %v, locked %v", err, other.Locked())
	}
	if err := syscall.Seteuid(0); err != nil {
		return err
	}
	free, err := flockctx.TryLock(path, o)
	if err != nil {
		return err
	}
	return errors.Join(free.Close(), other.Close())
})

// Where the file must not be removed Close says so, and releases the lock.
func TestRemoveThatIsForbidden(t *testing.T) {
	t.Run("immutable", func(t *testing.T) {
		path := tempPath(t)
		must(t, os.WriteFile(path, nil, 0o600))
		for _, flag := range []string{"i", "a"} { // append-only files cannot be removed either
			if out, err := exec.Command("chattr", "+"+flag, path).CombinedOutput(); err != nil {
				t.Skipf("SKIP: %s: chattr: %v: %s", t.Name(), err, out)
			}
			undo := func() { exec.Command("chattr", "-"+flag, path).Run() }
			t.Cleanup(undo)
			wantNotRemoved(t, mustLock(t, path, &flockctx.Options{Remove: true}), fs.ErrPermission)
			undo()
		}
	})
	t.Run("directory of another user", func(t *testing.T) {
		dir := publicDir(t, 0o755)
		path := filepath.Join(dir, "file")
		must(t, os.WriteFile(path, nil, 0o666))
		must(t, os.Chmod(path, 0o666))
		runAsNobody(t, "remove-forbidden", path)
		// The same behind a link of one's own.
		own := publicDir(t, 0o777)
		must(t, os.Symlink(path, filepath.Join(own, "link")))
		runAsNobody(t, "remove-forbidden", filepath.Join(own, "link"))
	})
	t.Run("sticky", func(t *testing.T) {
		dir := publicDir(t, 0o777|fs.ModeSticky)
		path := filepath.Join(dir, "file")
		must(t, os.WriteFile(path, nil, 0o666))
		must(t, os.Chmod(path, 0o666))
		runAsNobody(t, "remove-forbidden", path)
	})
}

var _ = registerCommand("remove-forbidden", func(args []string) error {
	l, err := flockctx.Lock(context.Background(), args[0], &flockctx.Options{Remove: true})
	if err != nil {
		return err
	}
	err = l.Close()
	if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Op != "remove" || pathErr.Path != args[0] || !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("Close: %v (%T)", err, err)
	}
	if _, err := os.Stat(args[0]); err != nil {
		return err
	}
	return closed(flockctx.TryLock(args[0], nil))
})

// Nor is it where the server, or the disk, gives no answer about the path.
func TestLockWhosePathCannotBeLookedAt(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ESTALE, unix.EIO, unix.EACCES, unix.ENOSYS} {
		for _, mechanism := range mechanisms() {
			run(t, "no-look", []string{tempPath(t), fmt.Sprint(int(errno)), fmt.Sprint(int(mechanism))})
		}
	}
}

var _ = registerCommand("no-look", func(args []string) error {
	var errno unix.Errno
	o := &flockctx.Options{Mode: flockctx.Shared}
	fmt.Sscan(args[1], (*uintptr)(&errno))
	fmt.Sscan(args[2], (*int)(&o.Mechanism))
	l, err := flockctx.Lock(context.Background(), args[0], o)
	if err != nil {
		return err
	}
	newfstatat := map[string]uintptr{"amd64": 262, "arm64": 79, "riscv64": 79}[runtime.GOARCH]
	if newfstatat == 0 {
		fmt.Fprintln(os.Stderr, "SKIP: the number of newfstatat(2) is not known here")
		return l.Close()
	}
	if err := answer(newfstatat, 0, errno); err != nil {
		return err
	}
	for _, mode := range []flockctx.Mode{flockctx.Exclusive, flockctx.Shared} {
		if err := l.Convert(context.Background(), mode); err != nil || !l.Locked() {
			return fmt.Errorf("%v: Convert to %v: %v, locked %v", errno, mode, err, l.Locked())
		}
	}
	// A new lock must be on the file that the path names, and that cannot be told.
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := closed(flockctx.Lock(ctx, args[0], o)); err == nil {
		return fmt.Errorf("%v: locked", errno)
	}
	return l.Close()
})
