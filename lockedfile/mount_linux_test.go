package lockedfile_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/flockctx/flockctx/lockedfile"
	"golang.org/x/sys/unix"
)

// File systems that refuse, mounted in a mount namespace of a process's own, so that
// nothing stays behind.

// inNamespace runs the command of that name in a mount namespace, with a directory.
func inNamespace(t *testing.T, name string, args ...string) {
	t.Helper()
	needRoot(t)
	cmd := newCommand(t, name, append([]string{t.TempDir()}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := func() ([]byte, error) { cmd.Stderr = nil; return cmd.CombinedOutput() }()
	if text := string(out); err == nil && strings.Contains(text, "SKIP") {
		t.Skipf("SKIP: %s: %s", t.Name(), strings.TrimSpace(text))
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// refused checks that path cannot be written, with this error, is as it was, and that
// nothing is left behind.
func refused(path, old string, data []byte, want error) error {
	err := lockedfile.Write(context.Background(), path, data, 0o600)
	if !errors.Is(err, want) || strings.Count(err.Error(), path) != 1 {
		return fmt.Errorf("got %v, want %v and the path once", err, want)
	}
	if errors.As(err, new(*lockedfile.DurabilityError)) {
		return fmt.Errorf("got %T", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != old {
		return fmt.Errorf("the file is %.20q, %v", b, err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".flockctx-") {
			err = fmt.Errorf("left behind: %s", e.Name())
		}
	}
	return err
}

// fillUp checks that a full file system refuses, and that a smaller content fits then.
func fillUp(dir string, want error) error {
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		return err
	}
	big := make([]byte, 2<<20)
	for range 3 {
		if err := refused(path, "old", big, want); err != nil {
			return err
		}
	}
	// Who does not look at the error of Write cannot commit the part.
	p, err := lockedfile.Replace(context.Background(), path, 0o600)
	if err != nil {
		return err
	}
	_, werr := p.Write(big)
	if cerr := p.Commit(); werr == nil || cerr == nil || !errors.Is(cerr, want) {
		return fmt.Errorf("Write: %v, Commit: %v", werr, cerr)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "old" {
		return fmt.Errorf("after Commit the file is %.20q, %v", b, err)
	}
	// What a killed writer left is removed before the new content needs its room.
	left := filepath.Join(dir, lockedfile.MarkOf("file")+"-LEFT")
	if err := os.Symlink(filepath.Base(left), filepath.Join(dir, lockedfile.MarkOf("file")+"-note")); err != nil {
		return err
	}
	if err := os.WriteFile(left, big, 0o600); err == nil {
		return errors.New("the file system is larger than this test thinks")
	}
	return lockedfile.Write(context.Background(), path, make([]byte, 500<<10), 0o600)
}

func TestFullFileSystem(t *testing.T) { inNamespace(t, "full") }

var _ = registerCommand("full", func(args []string) error {
	if err := unix.Mount("test", args[0], "tmpfs", 0, "size=1m"); err != nil {
		return err
	}
	return fillUp(args[0], unix.ENOSPC)
})

func TestQuota(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 64<<20))
	for _, tool := range []string{"mkfs.btrfs", "btrfs", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: %s needs %s", t.Name(), tool)
		}
	}
	must(t, os.Truncate(image, 256<<20))
	inNamespace(t, "quota", image)
}

var _ = registerCommand("quota", func(args []string) error {
	dir := args[0]
	for i, c := range [][]string{
		{"mkfs.btrfs", "-q", args[1]},
		{"mount", "-o", "loop", args[1], dir},
		{"btrfs", "subvolume", "create", dir + "/a"},
		{"btrfs", "quota", "enable", dir},
		{"btrfs", "qgroup", "limit", "1M", dir + "/a"},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			if i < 2 {
				fmt.Printf("SKIP: %v: %v: %s\n", c, err, out)
				return nil
			}
			return fmt.Errorf("%v: %w: %s", c, err, out)
		}
	}
	return fillUp(filepath.Join(dir, "a"), unix.EDQUOT)
})

// A file system that is mounted read-only, and a file that is a mount point.
func TestMounts(t *testing.T) { inNamespace(t, "mounts") }

var _ = registerCommand("mounts", func(args []string) error {
	dir := args[0]
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("test", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	path, other := filepath.Join(dir, "file"), filepath.Join(dir, "other")
	for _, p := range []string{path, other} {
		if err := os.WriteFile(p, []byte("old"), 0o600); err != nil {
			return err
		}
	}
	if err := unix.Mount(other, path, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := refused(path, "old", []byte("new"), unix.EBUSY); err != nil {
		return fmt.Errorf("a mount point: %w", err)
	}
	if err := unix.Unmount(path, 0); err != nil {
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if err := refused(path, "old", []byte("new"), unix.EROFS); err != nil {
		return fmt.Errorf("read-only: %w", err)
	}
	err := lockedfile.Write(context.Background(), filepath.Join(dir, "created"), nil, 0o600)
	if !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("read-only, created: %v", err)
	}
	b, err := lockedfile.Read(context.Background(), path)
	if err != nil || string(b) != "old" {
		return fmt.Errorf("read-only, read: %q, %v", b, err)
	}
	return nil
})
