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
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

// What the permissions of a file are for: another user. The tests run as root, and
// the command that locks as nobody.

const nobody = 65534

// asNobody has cmd, of newCommand, run as another user, or skips the test.
func asNobody(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("SKIP: %s: only root can run a command as another user", t.Name())
	}
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
