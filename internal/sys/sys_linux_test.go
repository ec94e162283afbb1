package sys_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/flockctx/flockctx/internal/sys"
	"golang.org/x/sys/unix"
)

const maxThreadsEnv = "SYS_TEST_MAX_THREADS"

// With maxThreadsEnv the binary is not a test: it says how many threads it may have.
func TestMain(m *testing.M) {
	if limit := os.Getenv(maxThreadsEnv); limit != "" {
		var n uint64
		if _, err := fmt.Sscan(limit, &n); err == nil && n > 0 {
			unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: n, Max: n})
		}
		fmt.Scanln(new(string))
		fmt.Println(sys.MaxThreads())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dirs are a directory with a short name, for which some systems have a fast path, and
// one with a name that is too long for that.
func dirs(t *testing.T) []string {
	short, err := os.MkdirTemp("", "s")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(short) })
	long := filepath.Join(short, strings.Repeat("x", 150))
	must(t, os.Mkdir(long, 0o700))
	return []string{short, long}
}

// open opens what has to be opened.
func open(t *testing.T, path string, flag int) *sys.Descriptor {
	t.Helper()
	d, err := sys.Open(path, flag, 0o600)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return &d
}

func TestOpen(t *testing.T) {
	for _, dir := range dirs(t) {
		path := filepath.Join(dir, "f")
		d := open(t, path, os.O_RDWR|os.O_CREATE)
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if d.ID.Dev != uint64(st.Dev) || d.ID.Ino != st.Ino || !d.IsOpen() || st.Mode != unix.S_IFREG|0o600 {
			t.Errorf("%+v, %+v", d, st)
		}
		fd, bare := d.Bare()
		if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || !bare || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %d, %v, bare %v", fd, flags, err, bare)
		}
		if e := open(t, dir, os.O_RDONLY); e.ID == d.ID {
			t.Error("two files have one ID")
		}
		for name, want := range map[string]error{"missing": fs.ErrNotExist, "f/x": syscall.ENOTDIR, "nul\x00": syscall.EINVAL} {
			if _, err := sys.Open(filepath.Join(dir, name), os.O_RDWR, 0); !errors.Is(err, want) {
				t.Errorf("%q: %v, want %v", name, err, want)
			}
		}
		must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
		for _, flag := range []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR} {
			if _, err := sys.Open(filepath.Join(dir, "fifo"), flag, 0); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("a FIFO: %v", err)
			}
		}
	}
}

func TestVerify(t *testing.T) {
	for _, dir := range dirs(t) {
		path := filepath.Join(dir, "f")
		d := open(t, path, os.O_RDWR|os.O_CREATE)
		must(t, os.Symlink("f", filepath.Join(dir, "link")))
		must(t, os.Link(path, filepath.Join(dir, "hard")))
		must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
		must(t, os.WriteFile(filepath.Join(dir, "other"), nil, 0o600))
		for name, want := range map[string]error{
			"f": nil, "link": nil, "hard": nil, "./f": nil,
			"other": sys.ErrStale, "missing": sys.ErrStale, "other/x": sys.ErrStale, "fifo": sys.ErrStale, ".": sys.ErrStale,
		} {
			if err := d.Verify(filepath.Join(dir, name)); err != want {
				t.Errorf("%q: %v, want %v", name, err, want)
			}
		}
		// What cannot be looked at is not known to be another file.
		must(t, os.Symlink("loop", filepath.Join(dir, "loop")))
		if err := d.Verify(filepath.Join(dir, "loop")); err == nil || err == sys.ErrStale {
			t.Errorf("a path that cannot be looked at: %v", err)
		}
		must(t, os.Rename(filepath.Join(dir, "other"), path))
		if err := d.Verify(path); err != sys.ErrStale {
			t.Errorf("replaced: %v", err)
		}
		if err := d.Verify(filepath.Join(dir, "hard")); err != nil {
			t.Errorf("by its other name: %v", err)
		}
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, ofd := range []bool{false, true} {
		a, b := open(t, path, os.O_RDWR|os.O_CREATE), open(t, path, os.O_RDWR)
		do := func(d *sys.Descriptor, op sys.Op, shared bool, want error) {
			t.Helper()
			if err := d.Lock(sys.Request{Op: op, Shared: shared, OFD: ofd}); err != want {
				t.Errorf("ofd %v, op %v, shared %v: %v, want %v", ofd, op, shared, err, want)
			}
		}
		do(a, sys.Unlock, false, nil) // there is none
		do(a, sys.Try, false, nil)
		do(b, sys.Try, false, sys.ErrBusy)
		do(b, sys.Try, true, sys.ErrBusy)
		do(a, sys.Try, true, nil) // converts
		do(b, sys.Try, true, nil)
		do(b, sys.Try, false, sys.ErrBusy)
		if !ofd { // flock(2) has dropped the shared lock then
			do(a, sys.Try, false, nil)
		}
		do(a, sys.Unlock, false, nil)
		do(b, sys.Try, false, nil)
		do(b, sys.Unlock, false, nil)
	}
	d := open(t, path, os.O_RDWR)
	must(t, d.File(path).Close())
	if err := d.Lock(sys.Request{}); err != fs.ErrClosed {
		t.Errorf("a closed file: %v", err)
	}
}

// A lock that a descriptor cannot have says why.
func TestLockOfTheWrongDescriptor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, nil, 0o600))
	for _, test := range []struct {
		flag int
		r    sys.Request
		text string
	}{
		{unix.O_PATH, sys.Request{}, "O_PATH"},
		{unix.O_PATH, sys.Request{OFD: true}, "O_PATH"},
		{os.O_RDONLY, sys.Request{OFD: true}, "for writing"},
		{os.O_WRONLY, sys.Request{OFD: true, Shared: true}, "for reading"},
	} {
		fd, err := unix.Open(path, test.flag|unix.O_CLOEXEC, 0)
		must(t, err)
		f := os.NewFile(uintptr(fd), path)
		d, err := sys.Borrow(f)
		must(t, err)
		if err := d.Lock(test.r); !errors.Is(err, unix.EBADF) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%+v: %v, want it to say %q", test, err, test.text)
		}
		must(t, f.Close())
	}
}

// The file systems of the machine are known, and those of the kernel are local.
func TestIsLocal(t *testing.T) {
	tried := 0
	for _, dir := range []string{"/dev/shm", "/run", "/tmp", "/var/tmp", "/proc", "/sys"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) != nil {
			continue
		}
		want, known := map[uint32]bool{0xef53: true, 0x01021994: true, 0x9fa0: true, 0x62656572: true,
			0x58465342: true, 0x9123683e: true, 0x794c7630: true, 0x65735546: false, 0x6969: false}[uint32(st.Type)]
		if !known {
			continue
		}
		tried++
		if d := open(t, dir, os.O_RDONLY); d.IsLocal() != want {
			t.Errorf("%s: local is %v", dir, !want)
		}
	}
	if tried == 0 {
		t.Skip("SKIP: no file system that is known")
	}
}

// maxThreads asks a new process, which prepare may put somewhere once it runs.
func maxThreads(t *testing.T, limit int, as *syscall.Credential, prepare func(pid int)) (n int) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Path = "/proc/self/exe" // others may not reach the directory of the binary
	cmd.Env = append(os.Environ(), maxThreadsEnv+"="+fmt.Sprint(limit))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	stdin, err := cmd.StdinPipe()
	must(t, err)
	out := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, out
	must(t, cmd.Start())
	if prepare != nil {
		prepare(cmd.Process.Pid)
	}
	stdin.Close()
	must(t, cmd.Wait())
	if _, err := fmt.Sscan(out.String(), &n); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return n
}

func TestMaxThreads(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: only root can run a process as another user, or make a cgroup")
	}
	const user, some = 65533, 300
	usual := maxThreads(t, 0, nil, nil)
	if n := maxThreads(t, some, nil, nil); n != usual {
		t.Errorf("root, which RLIMIT_NPROC does not concern: %d, and without it %d", n, usual)
	}
	if n := maxThreads(t, some, &syscall.Credential{Uid: user, Gid: user}, nil); n != min(usual, some) {
		t.Errorf("another user with an RLIMIT_NPROC of %d: %d", some, n)
	}
	// A cgroup, and one in it: the smaller limit counts.
	group := ""
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/pids"} {
		dir := filepath.Join(root, fmt.Sprint("flockctx-test-", os.Getpid()))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { os.Remove(dir) })
		f, err := os.OpenFile(filepath.Join(dir, "pids.max"), os.O_WRONLY, 0)
		if err != nil {
			continue
		}
		if _, err := f.WriteString("60"); err == nil && f.Close() == nil {
			group = dir
			break
		}
	}
	if group == "" {
		t.Skip("SKIP: no cgroup with the pids controller can be made")
	}
	inner := filepath.Join(group, "inner")
	must(t, os.Mkdir(inner, 0o755))
	t.Cleanup(func() { os.Remove(inner) })
	join := func(dir string) func(pid int) {
		return func(pid int) {
			must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, pid), 0))
		}
	}
	for _, dir := range []string{group, inner} {
		if n := maxThreads(t, 0, nil, join(dir)); n != 60 {
			t.Errorf("in %s, whose pids.max is 60: %d", dir, n)
		}
	}
}
