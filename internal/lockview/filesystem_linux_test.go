package lockview_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flockctx/flockctx/internal/lockview"
	"golang.org/x/sys/unix"
)

// run is for what a test needs, or is skipped without.
func run(t *testing.T, name string, arg ...string) {
	t.Helper()
	if out, err := exec.Command(name, arg...).CombinedOutput(); err != nil {
		t.Skipf("SKIP: %s: %s %v: %v: %s", t.Name(), name, arg, err, out)
	}
}

func mount(t *testing.T, dir string, arg ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: mounting file systems needs root")
	}
	run(t, "mount", append(arg, dir)...)
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

// twoFiles has locks on two files, and looks at each.
func twoFiles(t *testing.T, a, b string) {
	for _, p := range []string{a, b} {
		must(t, os.WriteFile(p, []byte("0123456789abcdef"), 0o600))
	}
	la := start(t, "flock", a)
	if ls := locks(t, b); len(ls) != 0 {
		t.Errorf("the other file: %+v", ls)
	}
	lb := start(t, "ofd", b)
	wa, wb := start(t, "wait-flock", a), start(t, "wait-ofd", b)
	for _, x := range []struct {
		path            string
		holding, waiter int
	}{{a, la.pid, wa.pid}, {b, lb.pid, 0}} {
		ls := eventually(t, x.path, 1)
		if len(ls) != 2 || ls[0].PID != x.holding || ls[1].PID != x.waiter || ls[1].WaitsFor != x.holding {
			t.Errorf("%s: %+v; want %d and %d", x.path, ls, x.holding, x.waiter)
		}
		if all := allLocks(t, x.path); fmt.Sprint(all) != fmt.Sprint(ls) {
			t.Errorf("All has\n%+v, Of\n%+v", all, ls)
		}
	}
	wa.stop()
	wb.stop()
	la.stop()
	lb.stop()
}

func TestTmpfs(t *testing.T) {
	dir := t.TempDir()
	mount(t, dir, "-t", "tmpfs", "tmpfs")
	locks(t, dir)
	twoFiles(t, filepath.Join(dir, "a"), filepath.Join(dir, "b"))
}

// On these the kernel's table and stat(2) number devices or inodes differently, or
// two files alike.
func TestOverlay(t *testing.T) {
	dir := t.TempDir()
	mount(t, dir, "-t", "tmpfs", "tmpfs")
	locks(t, dir)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	merged := filepath.Join(dir, "merged")
	must(t, os.WriteFile(filepath.Join(dir, "lower", "a"), nil, 0o600))
	mount(t, merged, "-t", "overlay", "-o", "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work", "overlay")
	twoFiles(t, filepath.Join(merged, "a"), filepath.Join(merged, "b"))
	mapped(t, filepath.Join(merged, "b"))
}

func TestBtrfs(t *testing.T) {
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	run(t, "truncate", "-s", "128M", image)
	run(t, "mkfs.btrfs", "-q", image)
	mount(t, dir, "-o", "loop", image)
	locks(t, dir)
	run(t, "btrfs", "subvolume", "create", dir+"/one")
	run(t, "btrfs", "subvolume", "create", dir+"/two")
	a, b := filepath.Join(dir, "one", "x"), filepath.Join(dir, "two", "x")
	twoFiles(t, a, b) // both are inode 257 of the device

	// Equal locks on the two.
	pa, pb := start(t, "ofd", a), start(t, "ofd", b)
	for path, pid := range map[string]int{a: pa.pid, b: pb.pid} {
		if l := one(t, path); l.PID != pid || l.Waiting {
			t.Errorf("%s: %+v; want %d", path, l, pid)
		}
	}
	pa.stop()
	pb.stop()

	// A lock that no descriptor explains, beside one that another file's does.
	pb = start(t, "flock", b)
	mapped(t, a)
	pb.stop()

	// To another user all processes but its own are closed books.
	openDirectories(a)
	must(t, os.Chmod(b, 0o666))
	cmd := asAnotherUser(command("look-beside", a+":"+b))
	out, err := cmd.Output()
	must(t, err)
	if string(out) != "started\n" {
		t.Errorf("its own lock is on the other file: %s", out)
	}
}

// A daemon that has stopped, of a file system on which a process has a lock, must
// not hold up who asks about other files.
func TestStoppedDaemon(t *testing.T) {
	path := newFile(t)
	lockedFile(t, path, unix.LOCK_EX)
	locks(t, path)
	dir := t.TempDir()
	daemon := startFuse(t, dir)
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	daemon.stopped.Store(true)
	done := make(chan func())
	go func() {
		ls, err := lockview.Of(path, nobody)
		all, allErr := lockview.All(nobody)
		done <- func() {
			must(t, err)
			must(t, allErr)
			if len(ls) != 1 || ls[0].PID != os.Getpid() {
				t.Errorf("%+v; want this process", ls)
			}
			if !strings.Contains(fmt.Sprint(all), dir) {
				t.Errorf("All lacks the lock on %s", dir)
			}
		}
	}()
	select {
	case check := <-done:
		check()
	case <-time.After(time.Minute):
		t.Error("it hangs")
		daemon.abort()
		<-done
	}
}

// A fuse is a file system of the test's own: a directory, whose locks are the kernel's.
type fuse struct {
	fd      int
	dir     string
	stopped atomic.Bool
}

func startFuse(t *testing.T, dir string) *fuse {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Mount("lockview", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
	}
	if err != nil {
		t.Skipf("SKIP: %s: a file system of FUSE: %v", t.Name(), err)
	}
	d := &fuse{fd: fd, dir: dir}
	var served sync.WaitGroup
	served.Go(d.serve)
	t.Cleanup(func() {
		d.abort()
		served.Wait()
		unix.Close(fd)
	})
	return d
}

// abort ends all that waits for an answer.
func (d *fuse) abort() { unix.Unmount(d.dir, unix.MNT_FORCE|unix.MNT_DETACH) }

// serve answers requests as linux/fuse.h has them.
func (d *fuse) serve() {
	const getattr, initialize, opendir = 3, 26, 27
	request := make([]byte, 1<<17)
	var native binary.ByteOrder = binary.LittleEndian
	for {
		if _, err := unix.Read(d.fd, request); err == unix.EINTR {
			continue
		} else if err != nil {
			return
		}
		if native.Uint32(request[4:]) > 1<<16 { // the kernel's order, also under an emulator
			native = binary.BigEndian
		}
		if d.stopped.Load() {
			continue
		}
		var answer []byte
		errno := 0
		switch native.Uint32(request[4:]) {
		case getattr:
			answer = make([]byte, 16+88)
			native.PutUint64(answer[16:], 1)              // inode
			native.PutUint32(answer[16+60:], 0o755|1<<14) // mode: a directory
			native.PutUint32(answer[16+64:], 2)           // links
		case initialize:
			answer = make([]byte, 64)
			native.PutUint32(answer[0:], 7)
			native.PutUint32(answer[4:], 31)
			native.PutUint32(answer[20:], 4096) // max_write
			native.PutUint32(answer[24:], 1)    // time_gran
		case opendir:
			answer = make([]byte, 16)
		default:
			errno = -int(unix.ENOSYS)
		}
		head := make([]byte, 16, 16+len(answer))
		native.PutUint32(head[0:], uint32(16+len(answer)))
		native.PutUint32(head[4:], uint32(errno))
		copy(head[8:], request[8:16]) // the number of the request
		unix.Write(d.fd, append(head, answer...))
	}
}
