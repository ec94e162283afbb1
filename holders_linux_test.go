//go:build linux

package flockctx_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// A locker is a process, the test binary itself, that locks a file.
type locker struct {
	t     *testing.T
	verb  string
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Scanner
	pid   int
}

// startLocker starts a process that does what lockerCommand knows as verb, and
// waits until it says that it has started.
func startLocker(t *testing.T, verb, path string) *locker {
	t.Helper()
	cmd := newCommand(t, "locker", []string{verb, path})
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l := &locker{t: t, verb: verb, cmd: cmd, stdin: stdin, out: bufio.NewScanner(stdout), pid: cmd.Process.Pid}
	t.Cleanup(l.stop)
	l.expect("started")
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
	l.t.Fatalf("the locker ended without saying %q", prefix)
	return ""
}

// stop ends the process, by the end of its standard input, and waits for it.
func (l *locker) stop() {
	if l.cmd == nil {
		return
	}
	l.stdin.Close()
	if l.cmd.ProcessState == nil {
		// One that waits for a lock does not look at its input.
		timer := time.AfterFunc(10*time.Second, func() { l.cmd.Process.Kill() })
		if strings.HasPrefix(l.verb, "wait") {
			l.cmd.Process.Kill()
		}
		l.cmd.Wait()
		timer.Stop()
	}
	l.cmd = nil
}

var _ = registerCommand("locker", lockerCommand)

// lockerCommand is the process of startLocker.
func lockerCommand(args []string) error {
	verb, path := args[0], args[1]
	fmt.Println("started")
	if verb == "keep" { // the lock came with descriptor 3
		fmt.Println("locked")
		io.Copy(io.Discard, os.Stdin)
		return nil
	}
	if verb == "lock-inherited" {
		if err := unix.Flock(3, unix.LOCK_EX); err != nil {
			return err
		}
		fmt.Println("locked")
		io.Copy(io.Discard, os.Stdin)
		return nil
	}
	if verb == "look-beside" { // with an equal lock on a file with the same numbers
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrPermission) {
			fmt.Println("closed")
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
			return err
		}
		verb, path = "look", args[2]
	}
	if verb == "look" { // as a user who may not open it
		hs, err := flockctx.Holders(path)
		for _, h := range hs {
			fmt.Println("pid", h.PID, "locker", h.Locker)
		}
		if err != nil {
			return err
		}
		return nil
	}
	flag := os.O_RDWR
	if verb == "lease-read" {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return err
	}
	fd := int(f.Fd())
	keeper := func() *exec.Cmd {
		exe, err := os.Executable()
		if err != nil {
			panic(err)
		}
		c := exec.Command(exe, "keep", path)
		c.Env = append(os.Environ(), commandEnv+"=locker")
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		c.ExtraFiles = []*os.File{f}
		if err := c.Start(); err != nil {
			panic(err)
		}
		fmt.Println("child", c.Process.Pid)
		return c
	}
	switch verb {
	case "toggle", "toggle-ofd":
		return toggle(f, verb == "toggle-ofd")
	case "wait-crowd":
		return crowd(path)
	case "flock", "wait-flock":
		err = unix.Flock(fd, unix.LOCK_EX)
	case "flock-shared":
		err = unix.Flock(fd, unix.LOCK_SH)
	case "ofd", "wait-ofd":
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 5})
	case "posix", "wait-posix":
		err = unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10})
	case "lease":
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	case "lease-read":
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	case "leave-to-child":
		if err = unix.Flock(fd, unix.LOCK_EX); err == nil {
			keeper()
		}
		os.Exit(0)
	case "share-with-child":
		if err = unix.Flock(fd, unix.LOCK_EX); err == nil {
			defer keeper().Wait()
		}
	default:
		err = errors.New("unknown verb")
	}
	if err != nil {
		return err
	}
	fmt.Println("locked")
	io.Copy(io.Discard, os.Stdin)
	return f.Close()
}

// toggle takes and releases the lock until its standard input ends.
func toggle(f *os.File, ofd bool) error {
	done := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(done)
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
		select {
		case <-done:
			return nil
		default:
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

func holders(t *testing.T, path string) []flockctx.Holder {
	t.Helper()
	hs, err := flockctx.Holders(path)
	if err != nil {
		t.Fatal(err)
	}
	return hs
}

// one returns the only holder, having checked that it is for path.
func one(t *testing.T, path string) flockctx.Holder {
	t.Helper()
	hs := holders(t, path)
	if len(hs) != 1 {
		t.Fatalf("Holders = %+v; want one", hs)
	}
	return hs[0]
}

// eventualHolders gets the holders until they are as wanted.
func eventualHolders(t *testing.T, path string, want func([]flockctx.Holder) bool) []flockctx.Holder {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		hs := holders(t, path)
		if want(hs) {
			return hs
		}
		if time.Now().After(deadline) {
			t.Fatalf("Holders stay %.2000s", fmt.Sprintf("%+v", hs))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func waiters(hs []flockctx.Holder) (n int) {
	for _, h := range hs {
		if h.Waiting {
			n++
		}
	}
	return n
}

func newFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.lock")
	if err := os.WriteFile(path, []byte("some bytes of data, so that ranges mean something"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHoldersOwnProcess(t *testing.T) {
	path := newFile(t)
	for _, o := range []flockctx.Options{{}, {Mode: flockctx.Shared}, {Mechanism: flockctx.OFD}, {Mechanism: flockctx.OFD, Start: 4, Length: 3}} {
		l, err := flockctx.TryLock(path, &o)
		if err != nil {
			t.Fatal(err)
		}
		h := one(t, path)
		exe, _ := os.Executable()
		if h.PID != os.Getpid() || h.Waiting || h.Mode != o.Mode || h.Mechanism != o.Mechanism ||
			h.Start != o.Start || h.Length != o.Length || h.Path != path || h.Others != nil ||
			!strings.Contains(h.Command, filepath.Base(exe)) {
			t.Errorf("with %+v: %+v", o, h)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if hs := holders(t, path); len(hs) != 0 {
			t.Errorf("after Close: %+v", hs)
		}
	}
}

func TestHoldersThroughOtherNames(t *testing.T) {
	path := newFile(t)
	link, hard := path+".sym", path+".hard"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, hard); err != nil {
		t.Fatal(err)
	}
	l, err := flockctx.TryLock(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, p := range []string{link, hard} {
		if h := one(t, p); h.PID != os.Getpid() || h.Path != p {
			t.Errorf("Holders(%s) = %+v", p, h)
		}
	}
}

func TestHoldersOtherProcess(t *testing.T) {
	for verb, want := range map[string]flockctx.Holder{
		"flock":        {Mechanism: flockctx.BSD},
		"flock-shared": {Mechanism: flockctx.BSD, Mode: flockctx.Shared},
		"ofd":          {Mechanism: flockctx.OFD, Start: 10, Length: 5},
		"posix":        {Mechanism: flockctx.POSIX, Start: 10},
		"lease":        {Mechanism: flockctx.Lease},
		"lease-read":   {Mechanism: flockctx.Lease, Mode: flockctx.Shared},
	} {
		t.Run(verb, func(t *testing.T) {
			path := newFile(t)
			l := startLocker(t, verb, path)
			l.expect("locked")
			h := one(t, path)
			if !strings.HasSuffix(h.Command, verb+" "+path) {
				t.Errorf("command %q", h.Command)
			}
			if h.Device == 0 || h.Inode == 0 {
				t.Errorf("no device or inode: %+v", h)
			}
			want.PID, want.Command, want.Path, want.Device, want.Inode = l.pid, h.Command, path, h.Device, h.Inode
			if want.Mechanism != flockctx.OFD {
				want.Locker = l.pid
			}
			if fmt.Sprint(h) != fmt.Sprint(want) {
				t.Errorf("got  %+v\nwant %+v", h, want)
			}
			l.stop()
			if hs := holders(t, path); len(hs) != 0 {
				t.Errorf("after its end: %+v", hs)
			}
		})
	}
}

// The kernel's table names the process that took the lock. It has ended, and its
// child has the lock: that is the one to name.
func TestHoldersInheritedFromTheDead(t *testing.T) {
	path := newFile(t)
	l := startLocker(t, "leave-to-child", path)
	child, err := strconv.Atoi(l.expect("child"))
	if err != nil {
		t.Fatal(err)
	}
	l.expect("locked")
	if _, err := l.cmd.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	h := one(t, path)
	if h.PID != child || h.Locker != l.pid || h.Others != nil || h.Waiting || h.Command == "" {
		t.Errorf("got %+v; want process %d with the lock of %d", h, child, l.pid)
	}
	l.stdin.Close()
	eventualHolders(t, path, func(hs []flockctx.Holder) bool { return len(hs) == 0 })
}

func TestHoldersSharedDescription(t *testing.T) {
	path := newFile(t)
	l := startLocker(t, "share-with-child", path)
	child, err := strconv.Atoi(l.expect("child"))
	if err != nil {
		t.Fatal(err)
	}
	l.expect("locked")
	l.expect("locked")
	if h := one(t, path); h.PID != l.pid || !slices.Equal(h.Others, []int{child}) {
		t.Errorf("got %+v; want process %d, and %d among others", h, l.pid, child)
	}
}

// This process has the description, and the lower number; the other one took the lock.
func TestHoldersLockerIsNamed(t *testing.T) {
	path := newFile(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := newCommand(t, "locker", []string{"lock-inherited", path})
	cmd.ExtraFiles = []*os.File{f}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(stdout); s.Scan() && s.Text() != "locked"; {
	}
	if h := one(t, path); h.PID != cmd.Process.Pid || h.Locker != h.PID || !slices.Equal(h.Others, []int{os.Getpid()}) {
		t.Errorf("got %+v; want process %d, and %d among others", h, cmd.Process.Pid, os.Getpid())
	}
	stdin.Close()
	cmd.Wait()
	if h := one(t, path); h.PID != os.Getpid() || h.Locker != cmd.Process.Pid {
		t.Errorf("after its end: %+v; want this process", h)
	}
}

func TestHoldersSeveralShared(t *testing.T) {
	path := newFile(t)
	shared := &flockctx.Options{Mode: flockctx.Shared}
	for range 2 {
		l, err := flockctx.TryLock(path, shared)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		// A duplicate has the same lock and is no holder of its own.
		d, err := unix.FcntlInt(l.File().Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(d)
	}
	a := startLocker(t, "flock-shared", path)
	a.expect("locked")
	var pids []int
	for _, h := range holders(t, path) {
		if h.Mode != flockctx.Shared || h.Waiting || h.Others != nil {
			t.Errorf("%+v", h)
		}
		pids = append(pids, h.PID)
	}
	want := []int{os.Getpid(), os.Getpid(), a.pid}
	slices.Sort(want)
	if !slices.Equal(pids, want) {
		t.Errorf("processes %v; want %v", pids, want)
	}
}

func TestHoldersWaiters(t *testing.T) {
	for verb, o := range map[string]*flockctx.Options{
		"wait-flock": nil,
		"wait-ofd":   {Mechanism: flockctx.OFD},
		"wait-posix": {Mechanism: flockctx.OFD},
	} {
		t.Run(verb, func(t *testing.T) {
			path := newFile(t)
			l, err := flockctx.TryLock(path, o)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			a := startLocker(t, verb, path)
			b := startLocker(t, verb, path)
			hs := eventualHolders(t, path, func(hs []flockctx.Holder) bool { return waiters(hs) == 2 })
			if len(hs) != 3 || hs[0].Waiting || hs[0].PID != os.Getpid() {
				t.Fatalf("got %+v; want this process first, then those that wait", hs)
			}
			var pids []int
			for _, h := range hs[1:] {
				pids = append(pids, h.PID)
				if h.WaitsFor != os.Getpid() || !h.Waiting || h.Path != path || !strings.HasSuffix(h.Command, verb+" "+path) {
					t.Errorf("%+v", h)
				}
				if verb == "wait-ofd" && (h.Mechanism != flockctx.OFD || h.Start != 10 || h.Length != 5) {
					t.Errorf("%+v", h)
				}
			}
			slices.Sort(pids)
			want := []int{a.pid, b.pid}
			slices.Sort(want)
			if !slices.Equal(pids, want) {
				t.Errorf("processes %v wait; want %v", pids, want)
			}
		})
	}
}

// The kernel's entry of the lock is larger than what is read at once.
func TestHoldersCrowd(t *testing.T) {
	path, other := newFile(t), newFile(t)
	for _, p := range []string{path, other} {
		l, err := flockctx.TryLock(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	a := startLocker(t, "wait-crowd", path)
	hs := eventualHolders(t, path, func(hs []flockctx.Holder) bool { return waiters(hs) == crowdSize })
	if len(hs) != crowdSize+1 {
		t.Errorf("%d entries; want %d", len(hs), crowdSize+1)
	}
	for i, h := range hs {
		want := a.pid
		if i == 0 {
			want = os.Getpid()
		}
		if h.PID != want || h.Waiting != (i > 0) || h.Waiting && h.WaitsFor != os.Getpid() {
			t.Errorf("entry %d: %+v; want process %d", i, h, want)
		}
	}
	if h := one(t, other); h.PID != os.Getpid() {
		t.Errorf("the other file: %+v", h)
	}
}

// One goroutine of this process waits in the kernel or polls, the others where the
// kernel does not see them. Each counts once.
func TestHoldersWaitersInThisProcess(t *testing.T) {
	for _, o := range []flockctx.Options{
		{}, {Wait: flockctx.WaitPoll}, {Mechanism: flockctx.OFD, Start: 10, Length: 5},
		{Mechanism: flockctx.OFD, Start: 10, Length: 5, Wait: flockctx.WaitPoll}, {Mode: flockctx.Shared},
	} {
		t.Run(fmt.Sprintf("%v-%v-%v", o.Mechanism, o.Mode, o.Wait), func(t *testing.T) {
			path := newFile(t)
			verb := "flock"
			if o.Mechanism == flockctx.OFD {
				verb = "ofd"
			}
			a := startLocker(t, verb, path)
			a.expect("locked")
			const n = 5
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(context.Background())
			for range n {
				wg.Go(func() {
					l, err := flockctx.Lock(ctx, path, &o)
					if err == nil {
						l.Close()
					} else if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				})
			}
			hs := eventualHolders(t, path, func(hs []flockctx.Holder) bool { return waiters(hs) >= n })
			for _, h := range hs[1:] {
				if h.PID != os.Getpid() || h.WaitsFor != a.pid || h.Mechanism != o.Mechanism || h.Mode != o.Mode ||
					h.Start != o.Start || h.Length != o.Length || h.Path != path || h.Command == "" {
					t.Errorf("%+v", h)
				}
			}
			if len(hs) != n+1 {
				t.Errorf("%d entries; want %d: %+v", len(hs), n+1, hs)
			}
			cancel()
			wg.Wait()
			if hs := holders(t, path); len(hs) != 1 || hs[0].PID != a.pid {
				t.Errorf("after their end: %+v", hs)
			}
		})
	}
}

func TestHoldersWaitersOnOneHandle(t *testing.T) {
	path := newFile(t)
	l, err := flockctx.TryLock(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, h := range []*flockctx.Flock{l, flockctx.New(path, nil)} {
		wg.Go(func() { h.Lock(ctx) })
	}
	hs := eventualHolders(t, path, func(hs []flockctx.Holder) bool { return waiters(hs) == 2 })
	for _, h := range hs {
		if h.PID != os.Getpid() || h.Waiting && h.WaitsFor != os.Getpid() {
			t.Errorf("%+v", h)
		}
	}
	cancel()
	wg.Wait()
}

func TestHoldersMapped(t *testing.T) { mapped(t, newFile(t)) }

// A lock whose descriptor was closed lives on in a mapping of the file, unless the
// mapping is of another file, as on overlayfs. No process can be told to have it.
func mapped(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 10, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	other, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	switch err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case unix.EWOULDBLOCK:
		if h := one(t, path); h.PID != 0 || h.Command != "" || h.Locker != os.Getpid() {
			t.Errorf("got %+v; want no PID, and this process as locker", h)
		}
	case nil:
		t.Log("the lock went with the descriptor")
	default:
		t.Fatal(err)
	}
	other.Close()
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
	if hs := holders(t, path); len(hs) != 0 {
		t.Errorf("after unmapping: %+v", hs)
	}
}

// Where a lock is handed on all the time, the survey is never that of one moment.
// Still there is one holder at most.
func TestHoldersHandedOn(t *testing.T) {
	for _, verb := range []string{"toggle", "toggle-ofd"} {
		t.Run(verb, func(t *testing.T) {
			path := newFile(t)
			for range 4 {
				startLocker(t, verb, path).expect("locked")
			}
			for range 100 {
				var holding []flockctx.Holder
				for _, h := range holders(t, path) {
					if !h.Waiting {
						holding = append(holding, h)
					}
				}
				if len(holding) > 1 {
					t.Fatalf("%d hold an exclusive lock: %+v", len(holding), holding)
				}
			}
		})
	}
}

// Equal locks on two files that have the same numbers in the kernel's table.
func alike(t *testing.T, a, b string) {
	t.Helper()
	pa, pb := startLocker(t, "ofd", a), startLocker(t, "ofd", b)
	pa.expect("locked")
	pb.expect("locked")
	w := startLocker(t, "wait-ofd", b)
	hs := eventualHolders(t, b, func(hs []flockctx.Holder) bool { return waiters(hs) > 0 })
	if len(hs) != 2 || hs[0].PID != pb.pid || hs[1].PID != w.pid || hs[1].WaitsFor != pb.pid {
		t.Errorf("%s: %+v; want %d, and %d waiting", b, hs, pb.pid, w.pid)
	}
	if h := one(t, a); h.PID != pa.pid || h.Waiting {
		t.Errorf("%s: %+v; want %d", a, h, pa.pid)
	}
	all, err := flockctx.AllHolders()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		if h.Waiting && h.PID == w.pid && (h.Path != b || h.WaitsFor != pb.pid) {
			t.Errorf("AllHolders: %+v; want it to wait for %d", h, pb.pid)
		}
	}
	w.stop()
	pb.stop()

	// A lock that no descriptor explains, beside one that another file's does.
	pb = startLocker(t, "flock", b)
	pb.expect("locked")
	pa.stop()
	mapped(t, a)
	pb.stop()

	// To another user all processes but its own are closed books.
	for d := filepath.Dir(a); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	os.Chmod(b, 0o666)
	cmd := asAnotherUser(newCommand(t, "locker", []string{"look-beside", b, a}))
	out, err := cmd.Output()
	if strings.Contains(string(out), "closed") {
		t.Logf("SKIP: another user may not enter %s", os.TempDir())
		return
	}
	if err != nil || strings.Contains(string(out), "locker "+strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("its own lock is on the other file: %v: %s", err, out)
	}
}

func TestAllHolders(t *testing.T) {
	path := newFile(t)
	l, err := flockctx.TryLock(path, &flockctx.Options{Mechanism: flockctx.OFD})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := startLocker(t, "wait-ofd", path)
	eventualHolders(t, path, func(hs []flockctx.Holder) bool { return waiters(hs) == 1 })
	all, err := flockctx.AllHolders()
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(h flockctx.Holder) bool { return h.Path != path })
	if want := holders(t, path); fmt.Sprint(all) != fmt.Sprint(want) {
		t.Errorf("AllHolders has\n%+v, Holders\n%+v", all, want)
	}
	if len(all) != 2 || all[1].PID != a.pid {
		t.Errorf("%+v", all)
	}
}

// On these file systems the kernel's table and stat(2) number devices or inodes
// differently, or two files alike.
func TestHoldersFileSystems(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: mounting file systems needs root")
	}
	run := func(t *testing.T, name string, arg ...string) {
		t.Helper()
		if out, err := exec.Command(name, arg...).CombinedOutput(); err != nil {
			t.Skipf("SKIP: %s %v: %v: %s", name, arg, err, out)
		}
	}
	mount := func(t *testing.T, dir string, arg ...string) {
		t.Helper()
		run(t, "mount", append(arg, dir)...)
		t.Cleanup(func() {
			if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
				t.Errorf("umount: %v: %s", err, out)
			}
		})
	}
	check := func(t *testing.T, a, b string) {
		for _, p := range []string{a, b} {
			if err := os.WriteFile(p, []byte("0123456789abcdef"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		la := startLocker(t, "flock", a)
		la.expect("locked")
		if hs := holders(t, b); len(hs) != 0 {
			t.Errorf("the other file: %+v", hs)
		}
		lb := startLocker(t, "ofd", b)
		lb.expect("locked")
		wa, wb := startLocker(t, "wait-flock", a), startLocker(t, "wait-ofd", b)
		for _, x := range []struct {
			path            string
			holding, waiter int
		}{{a, la.pid, wa.pid}, {b, lb.pid, wb.pid}} {
			hs := eventualHolders(t, x.path, func(hs []flockctx.Holder) bool { return waiters(hs) > 0 })
			if len(hs) != 2 || hs[0].PID != x.holding || hs[1].PID != x.waiter || hs[1].WaitsFor != x.holding {
				t.Errorf("%s: %+v; want %d and %d", x.path, hs, x.holding, x.waiter)
			}
		}
		all, err := flockctx.AllHolders()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, h := range all {
			if h.Path == a || h.Path == b {
				n++
			}
		}
		if n != 4 {
			t.Errorf("AllHolders has %d entries for them; want 4: %+v", n, all)
		}
		wa.stop()
		wb.stop()
	}
	t.Run("tmpfs", func(t *testing.T) {
		dir := t.TempDir()
		mount(t, dir, "-t", "tmpfs", "tmpfs")
		check(t, filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	})
	t.Run("overlay", func(t *testing.T) {
		dir := t.TempDir()
		mount(t, dir, "-t", "tmpfs", "tmpfs")
		for _, d := range []string{"lower", "upper", "work", "merged"} {
			os.Mkdir(filepath.Join(dir, d), 0o755)
		}
		merged := filepath.Join(dir, "merged")
		if err := os.WriteFile(filepath.Join(dir, "lower", "a"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		mount(t, merged, "-t", "overlay", "-o", "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work", "overlay")
		check(t, filepath.Join(merged, "a"), filepath.Join(merged, "b"))
		path := filepath.Join(merged, "mapped")
		if err := os.WriteFile(path, []byte("0123456789"), 0o600); err != nil {
			t.Fatal(err)
		}
		mapped(t, path)
	})
	t.Run("btrfs", func(t *testing.T) {
		image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
		run(t, "truncate", "-s", "128M", image)
		run(t, "mkfs.btrfs", "-q", image)
		mount(t, dir, "-o", "loop", image)
		run(t, "btrfs", "subvolume", "create", dir+"/one")
		run(t, "btrfs", "subvolume", "create", dir+"/two")
		a, b := filepath.Join(dir, "one", "x"), filepath.Join(dir, "two", "x")
		t.Run("each", func(t *testing.T) { check(t, a, b) }) // both are inode 257 of the device
		t.Run("alike", func(t *testing.T) { alike(t, a, b) })
	})
}

// In a PID namespace the kernel's table hides a lock whose taker has ended, and all
// who wait for it.
func TestHoldersNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: a PID namespace needs root")
	}
	if os.Getpid() == 1 {
		if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			t.Fatal(err)
		}
		holdersInNamespace(t)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestHoldersNamespace$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID,
		Unshareflags: unix.CLONE_NEWNS, // which also keeps its mounts to itself
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		t.Skipf("SKIP: no PID namespace: %v", err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: TestHoldersNamespace") {
		t.Errorf("%v: %s", err, out)
	}
}

func holdersInNamespace(t *testing.T) {
	path := newFile(t)
	own, err := flockctx.TryLock(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if h := one(t, path); h.PID != 1 {
		t.Errorf("own lock: %+v", h)
	}
	own.Close()
	l := startLocker(t, "leave-to-child", path)
	child, err := strconv.Atoi(l.expect("child"))
	if err != nil {
		t.Fatal(err)
	}
	l.expect("locked")
	l.cmd.Process.Wait()
	if h := one(t, path); h.PID != child {
		t.Errorf("inherited lock: %+v; want process %d", h, child)
	}
	w := startLocker(t, "wait-flock", path)
	hs := eventualHolders(t, path, func(hs []flockctx.Holder) bool { return len(hs) == 2 })
	if !hs[1].Waiting || hs[1].PID != w.pid || hs[1].WaitsFor != child {
		t.Errorf("waiting for it: %+v; want process %d", hs, w.pid)
	}
	all, err := flockctx.AllHolders()
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(h flockctx.Holder) bool { return h.Path != path })
	if fmt.Sprint(all) != fmt.Sprint(hs) {
		t.Errorf("AllHolders has\n%+v, Holders\n%+v", all, hs)
	}
	w.stop()
	l.stdin.Close()
	eventualHolders(t, path, func(hs []flockctx.Holder) bool { return len(hs) == 0 })

	// A /proc without the table, as containers may have it.
	if err := unix.Mount("proc", "/proc", "proc", 0, "subset=pid"); err != nil {
		t.Logf("SKIP: a /proc without /proc/locks: %v", err)
		return
	}
	_, err = flockctx.Holders(path)
	if !errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/proc/locks") {
		t.Errorf("without /proc/locks: %v; want %v and its name", err, errors.ErrUnsupported)
	}
	if _, err = flockctx.AllHolders(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("AllHolders without /proc/locks: %v; want %v", err, errors.ErrUnsupported)
	}
}

// asAnotherUser makes cmd, which runs the test binary, one of another user.
func asAnotherUser(cmd *exec.Cmd) *exec.Cmd {
	cmd.Path = "/proc/self/exe" // the binary's directory may be closed to that user
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

// As another user, a process that may not be looked at is not named, and its lock
// is reported all the same.
func TestHoldersOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: becoming another user needs root")
	}
	path := newFile(t)
	for d := filepath.Dir(path); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	for _, verb := range []string{"flock", "posix"} {
		l := startLocker(t, verb, path)
		l.expect("locked")
		out, err := asAnotherUser(newCommand(t, "locker", []string{"look", path})).Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		// A POSIX lock is that of its process, and ends with it.
		pid := 0
		if verb == "posix" {
			pid = l.pid
		}
		if want := fmt.Sprintf("pid %d locker %d\n", pid, l.pid); !strings.Contains(string(out), want) || strings.Count(string(out), "locker") != 1 {
			t.Errorf("%s: %s; want %s", verb, out, want)
		}
		l.stop()
	}
}

func TestParseLock(t *testing.T) {
	text := `1: FLOCK  ADVISORY  WRITE 15629 fe:00:9978689 0 EOF
1: -> FLOCK  ADVISORY  READ  15630 fe:00:9978689 0 EOF
1:  -> FLOCK  ADVISORY  WRITE 15631 fe:00:9978689 0 EOF
2: POSIX  ADVISORY  READ 7 00:2a:12 10 19
3: OFDLCK ADVISORY  WRITE -1 fe:00:5 0 EOF
3: -> OFDLCK ADVISORY  WRITE -1 fe:00:5 0 0
4: LEASE  BREAKING  READ 9 fe:00:6 0 EOF
4: -> LEASE  BREAKER   WRITE 10 <none>:0 0 EOF
5: ACCESS MANDATORY WRITE 1 fe:00:6 0 EOF
6: POSIX  *NOINODE* READ 7 <none>:0 10 19
7: FLOCK  ADVISORY  WRITE x fe:00:9978689 0 EOF
`
	var got []string
	for _, e := range flockctx.ParseLocks(text) {
		got = append(got, fmt.Sprint(e))
	}
	want := []string{ // mechanism, mode, pid, device, inode, start, length
		"{{0 0 15629 {65024 9978689} 0 0} [{0 1 15630 {65024 9978689} 0 0} {0 0 15631 {65024 9978689} 0 0}]}",
		"{{2 1 7 {42 12} 10 10} []}",
		"{{1 0 -1 {65024 5} 0 0} [{1 0 -1 {65024 5} 0 1}]}",
		"{{3 1 9 {65024 6} 0 0} [{3 0 10 {65024 6} 0 0}]}",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Locks that come between two reads of the table shift it.
func TestAppendEntries(t *testing.T) {
	const a, b, c = "1: FLOCK  ADVISORY  WRITE 1 fe:00:1 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 9 fe:00:1 0 EOF\n",
		"2: FLOCK  ADVISORY  WRITE 2 fe:00:2 0 EOF\n", "3: FLOCK  ADVISORY  WRITE 3 fe:00:3 0 EOF\n"
	for _, x := range []struct{ first, then, want string }{
		{a + b, "", a + b}, {"", a + b, a + b}, {a + b, c, a + b + c}, {a + b, b, a + b}, {a + b, b + c, a + b + c},
		{a + b, a + b + c, a + b + c}, {b + a, a, b + a},
	} {
		got := flockctx.AppendEntries(flockctx.ParseLocks(x.first), flockctx.ParseLocks(x.then))
		if want := flockctx.ParseLocks(x.want); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q, then %q: %v; want %v", x.first, x.then, got, want)
		}
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add("1: -> FLOCK  ADVISORY  READ  15630 fe:00:9978689 0 EOF")
	f.Add("2: POSIX  ADVISORY  READ 7 00:2a:12 10 9223372036854775806")
	f.Add("4: -> LEASE  BREAKER   WRITE 10 <none>:0 0 EOF")
	f.Fuzz(func(t *testing.T, line string) {
		l, _, _, ok := flockctx.ParseLock(line)
		if s := fmt.Sprint(l); ok && strings.Contains(s, "(") {
			t.Errorf("%q: %s", line, s)
		}
		flockctx.ParseLocks(line)
	})
}
