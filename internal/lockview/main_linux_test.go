package lockview_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx/internal/lockview"
	"golang.org/x/sys/unix"
)

// The test binary runs itself for tests that need more than one process: with
// verbEnv set it does what the verb says, to the file that is its argument.
const verbEnv = "LOCKVIEW_TEST_VERB"

func TestMain(m *testing.M) {
	if verb := os.Getenv(verbEnv); verb != "" {
		if err := do(verb, os.Args[1]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", verb, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// do locks the file, says so, and ends with its standard input.
func do(verb, path string) error {
	verb = strings.TrimPrefix(verb, "wait-")
	fmt.Println("started")
	if look := lookers[verb]; look != nil {
		return look(path)
	}
	f := os.NewFile(3, path)
	if !strings.HasPrefix(verb, "inherited") {
		flag := os.O_RDWR
		if verb == "lease-shared" {
			flag = os.O_RDONLY
		}
		var err error
		if f, err = os.OpenFile(path, flag, 0); err != nil {
			return err
		}
	}
	switch verb {
	case "toggle", "toggle-ofd":
		return toggle(f, verb == "toggle-ofd")
	case "crowd":
		return crowd(path)
	case "come-and-go":
		return comeAndGo(path)
	case "inherited":
	default:
		what, child, _ := strings.Cut(strings.TrimPrefix(verb, "inherited-"), "+")
		if err := take(f, what); err != nil {
			return err
		}
		if child != "" {
			keeper := command("inherited", path, f)
			keeper.Stdin, keeper.Stdout = os.Stdin, os.Stdout
			if err := keeper.Start(); err != nil {
				return err
			}
			fmt.Println("child", keeper.Process.Pid)
			if child == "heir" {
				return nil
			}
			defer keeper.Wait()
		}
	}
	fmt.Println("locked")
	io.Copy(io.Discard, os.Stdin)
	return f.Close()
}

// take locks f, or waits until it can.
func take(f *os.File, what string) (err error) {
	switch what {
	case "flock":
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	case "flock-shared":
		err = unix.Flock(int(f.Fd()), unix.LOCK_SH)
	case "ofd":
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 5})
	case "posix":
		err = unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10})
	case "lease":
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	case "lease-shared":
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	default:
		err = errors.New("no such verb")
	}
	return err
}

// toggle takes and releases the lock until its standard input ends.
func toggle(f *os.File, ofd bool) error {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for first := true; ; first = false {
		for _, unlock := range []bool{false, true} {
			how, kind := unix.LOCK_EX, int16(unix.F_WRLCK)
			if unlock {
				how, kind = unix.LOCK_UN, unix.F_UNLCK
			}
			var err error
			if ofd {
				err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: kind})
			} else {
				err = unix.Flock(int(f.Fd()), how)
			}
			if err != nil {
				return err
			}
			if first && !unlock {
				fmt.Println("locked")
			}
		}
	}
}

// comeAndGo takes and releases many shared locks, all at once, until its standard input
// ends: so many that /proc/locks has several pages.
func comeAndGo(path string) error {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	var fs [300]*os.File
	for i := range fs {
		var err error
		if fs[i], err = os.Open(path); err != nil {
			return err
		}
	}
	fmt.Println("locked")
	for {
		for _, how := range []int{unix.LOCK_SH, unix.LOCK_UN} {
			for _, f := range fs {
				if err := unix.Flock(int(f.Fd()), how); err != nil {
					return err
				}
			}
		}
	}
}

// crowdSize is how many wait in a crowd: so many that their entry in /proc/locks is
// larger than 64 KiB.
const crowdSize = 400

// crowd waits for the lock with as many threads, for ever.
func crowd(path string) error {
	failed := make(chan error)
	for range crowdSize {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		go func() {
			failed <- unix.Flock(int(f.Fd()), unix.LOCK_EX)
			runtime.KeepAlive(f)
		}()
	}
	return <-failed
}

// command runs the test binary with files as its descriptors from 3 on.
func command(verb, path string, files ...*os.File) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(self, path)
	// A race-enabled process otherwise sleeps a second before it ends.
	cmd.Env = append(os.Environ(), verbEnv+"="+verb, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, files
	return cmd
}

// asAnotherUser has cmd run as one who is not root.
func asAnotherUser(cmd *exec.Cmd) *exec.Cmd {
	cmd.Path = "/proc/self/exe" // the binary's directory may be closed to that user
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

// A locker is another process that does what a verb says.
type locker struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Scanner
	pid   int
}

// start starts one, and waits until it has the lock, unless it is to wait for it.
func start(t *testing.T, verb, path string, files ...*os.File) *locker {
	t.Helper()
	l := &locker{t: t, cmd: command(verb, path, files...)}
	var err error
	l.stdin, err = l.cmd.StdinPipe()
	must(t, err)
	out, err := l.cmd.StdoutPipe()
	must(t, err)
	l.out = bufio.NewScanner(out)
	must(t, l.cmd.Start())
	l.pid = l.cmd.Process.Pid
	t.Cleanup(l.stop)
	if l.expect("started"); !strings.HasPrefix(verb, "wait-") && !strings.Contains(verb, "+") {
		l.expect("locked")
	}
	return l
}

// expect waits for a line that begins so, and returns the rest.
func (l *locker) expect(prefix string) string {
	l.t.Helper()
	for l.out.Scan() {
		if rest, ok := strings.CutPrefix(l.out.Text(), prefix); ok {
			return strings.TrimSpace(rest)
		}
	}
	l.t.Fatalf("the other process ended without saying %q", prefix)
	return ""
}

// child returns the number of the locker's child, which has its lock too. The two write
// to one pipe: the child may say that it has begun before its parent says who it is.
func (l *locker) child() (pid int) {
	l.t.Helper()
	for locked := false; pid == 0 || !locked; {
		line := l.expect("")
		locked = locked || line == "locked"
		if number, ok := strings.CutPrefix(line, "child "); ok {
			var err error
			pid, err = strconv.Atoi(number)
			must(l.t, err)
		}
	}
	return pid
}

// stop ends the process, which may wait for a lock.
func (l *locker) stop() {
	l.stdin.Close()
	if l.cmd.ProcessState == nil {
		l.cmd.Process.Kill()
		l.cmd.Wait()
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func nobody(*lockview.File) []lockview.Waiter { return nil }

// locks is Of, and skips the test where the system has no /proc/locks.
func locks(t testing.TB, path string) []lockview.Lock {
	t.Helper()
	ls, err := lockview.Of(path, nobody)
	if _, statErr := os.Stat("/proc/locks"); statErr != nil && errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("SKIP: %s: %v", t.Name(), err)
	}
	must(t, err)
	return ls
}

// allLocks is what All says of path.
func allLocks(t *testing.T, path string) (ls []lockview.Lock) {
	t.Helper()
	all, err := lockview.All(nobody)
	must(t, err)
	for _, l := range all {
		if l.Path == path {
			ls = append(ls, l)
		}
	}
	return ls
}

// one returns the only lock.
func one(t *testing.T, path string) lockview.Lock {
	t.Helper()
	ls := locks(t, path)
	if len(ls) != 1 {
		t.Fatalf("%+v; want one lock", ls)
	}
	return ls[0]
}

// eventually looks until as many wait.
func eventually(t *testing.T, path string, waiting int) []lockview.Lock {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		ls := locks(t, path)
		n := 0
		for _, l := range ls {
			if l.Waiting {
				n++
			}
		}
		if n == waiting {
			return ls
		}
		if time.Now().After(deadline) {
			t.Fatalf("it stays %.2000s", fmt.Sprintf("%+v", ls))
		}
	}
}

func newFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.lock")
	must(t, os.WriteFile(path, []byte("some bytes of data, so that ranges mean something"), 0o600))
	return path
}

// lockedFile opens path and takes a lock of flock(2).
func lockedFile(t testing.TB, path string, how int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	must(t, unix.Flock(int(f.Fd()), how))
	return f
}
