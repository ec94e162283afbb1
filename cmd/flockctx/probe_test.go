package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// lockNode is a node of a FUSE file system that answers each request for a lock with
// the same error, or with none and no lock either.
type lockNode struct {
	fs.LoopbackNode
	answer syscall.Errno
}

func (n *lockNode) Setlk(context.Context, fs.FileHandle, uint64, *fuse.FileLock, uint32) syscall.Errno {
	return n.answer
}

func (n *lockNode) Setlkw(context.Context, fs.FileHandle, uint64, *fuse.FileLock, uint32) syscall.Errno {
	return n.answer
}

// mountFUSE mounts a file system that passes all on to a directory, but for locks.
func mountFUSE(t *testing.T, answer syscall.Errno) string {
	t.Helper()
	if _, err := exec.LookPath("fusermount3"); err != nil && os.Getuid() != 0 {
		t.Skip("SKIP: no fusermount3 to mount a FUSE file system with")
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("SKIP: no FUSE: %v", err)
	} else {
		f.Close()
	}
	backing, dir := t.TempDir(), t.TempDir()
	// In a process of its own: a Go process that serves a file system deadlocks when
	// its children start in that file system while the collector stops the world.
	daemon := exec.Command(testBinary(t), "helper", "fuse", dir, backing, strconv.Itoa(int(answer)))
	daemon.Stderr = os.Stderr
	stdin, err := daemon.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "mounted\n" {
		stdin.Close()
		t.Skipf("SKIP: cannot mount a FUSE file system: %v", daemon.Wait())
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := daemon.Wait(); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// serveFUSE mounts the file system on dir until its standard input ends.
func serveFUSE(dir, backing, answer string) error {
	errno, err := strconv.Atoi(answer)
	if err != nil {
		return err
	}
	root := &fs.LoopbackRoot{Path: backing}
	root.NewNode = func(r *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &lockNode{fs.LoopbackNode{RootData: r}, syscall.Errno(errno)}
	}
	root.RootNode = root.NewNode(root, nil, "", nil)
	server, err := fs.Mount(dir, root.RootNode, &fs.Options{MountOptions: fuse.MountOptions{
		EnableLocks: true, FsName: "flockctx-test", Name: "lockless",
	}})
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	io.Copy(io.Discard, os.Stdin)
	return server.Unmount()
}

func probe(t *testing.T, dir string) (int, string) {
	t.Helper()
	code, out, errs := bash(t, dir, flockctxPath, `$F --probe .`)
	if errs != "" {
		t.Errorf("on standard error: %s", errs)
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 0 {
		t.Errorf("files are left: %v", left)
	}
	return code, out
}

func TestProbeLocal(t *testing.T) {
	code, out := probe(t, t.TempDir())
	if code != 0 || strings.Contains(out, "FAIL") {
		t.Errorf("status %d: %s", code, out)
	}
	for _, want := range []string{
		"file system ", "flock(2): exclusion", "shared locks", "blocking wait: handed over in",
		"cancellation: after", "removal under a waiter", "open file descriptions: exclusion",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in: %s", want, out)
		}
	}
}

func TestProbeWithoutLocks(t *testing.T) {
	code, out := probe(t, mountFUSE(t, syscall.ENOSYS))
	if code != 1 || !strings.Contains(out, "FAIL  flock(2): lock:") || !strings.Contains(out, "  fcntl(2), open file descriptions") || !strings.Contains(out, "file system fuse.lockless, flockctx-test") {
		t.Errorf("status %d: %s", code, out)
	}
}

// The file system grants every lock to everybody.
func TestProbeLyingFileSystem(t *testing.T) {
	code, out := probe(t, mountFUSE(t, 0))
	if code != 1 || !strings.Contains(out, "ok    flock(2): lock") || !strings.Contains(out, "FAIL  flock(2): exclusion") {
		t.Errorf("status %d: %s", code, out)
	}
}

func TestProbeInterrupted(t *testing.T) {
	dir := t.TempDir()
	files := func() int {
		left, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(left)
	}
	cmd := exec.Command(flockctxPath, "--probe", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has created its file", func() bool { return files() > 0 })
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if got := status(cmd.ProcessState); got != 128+int(syscall.SIGTERM) || files() > 0 {
		t.Errorf("status %d, and %d files are left", got, files())
	}
}

func TestProbeCannotWrite(t *testing.T) {
	code, _, errs := bash(t, t.TempDir(), flockctxPath, `$F --probe . >/dev/full`)
	if code != 1 || !strings.Contains(errs, "write error") {
		t.Errorf("status %d, %q", code, errs)
	}
}

func TestAgentWithoutLock(t *testing.T) {
	var out bytes.Buffer
	c := &command{strings.NewReader("unlock 0 0 -\n"), &out, io.Discard}
	if code := c.agent(t.Context(), "."); code != 0 || strings.HasPrefix(out.String(), "unlocked") {
		t.Errorf("status %d, %q", code, &out)
	}
}

func TestProbeWhatIsNoDirectory(t *testing.T) {
	for _, args := range [][]string{{"/no/such"}, {"/dev/null"}} {
		if code, _, errs := call(t, append([]string{"--probe"}, args...)...); code != exitNoInput || errs == "" {
			t.Errorf("--probe %v: status %d, %q; want %d", args, code, errs, exitNoInput)
		}
	}
	for _, args := range [][]string{{"--probe"}, {"--probe", "/", "/"}, {"--probe", "--list"}} {
		if code, _, _ := call(t, args...); code != exitUsage {
			t.Errorf("%v: status %d; want %d", args, code, exitUsage)
		}
	}
}
