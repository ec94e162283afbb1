package lockview_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flockctx/flockctx/internal/lockview"
	"golang.org/x/sys/unix"
)

func TestHolder(t *testing.T) {
	for verb, claim := range map[string]lockview.Claim{
		"flock":        {Kind: lockview.Flock},
		"flock-shared": {Kind: lockview.Flock, Shared: true},
		"ofd":          {Kind: lockview.OFD, Start: 10, Length: 5},
		"posix":        {Kind: lockview.POSIX, Start: 10},
		"lease":        {Kind: lockview.Lease},
		"lease-shared": {Kind: lockview.Lease, Shared: true},
	} {
		t.Run(verb, func(t *testing.T) {
			path := newFile(t)
			if ls := locks(t, path); len(ls) != 0 {
				t.Errorf("before: %+v", ls)
			}
			l := start(t, verb, path)
			var st unix.Stat_t
			must(t, unix.Stat(path, &st))
			got := one(t, path)
			want := lockview.Lock{Claim: claim, PID: l.pid, Command: got.Command, Path: path, Node: got.Node, Locker: l.pid,
				File: lockview.File{Dev: uint64(st.Dev), Ino: uint64(st.Ino)}}
			if verb == "ofd" {
				want.Locker = 0
			}
			if fmt.Sprint(got) != fmt.Sprint(want) || !strings.HasSuffix(got.Command, " "+path) || got.Node.Dev == 0 || got.Node.Ino == 0 {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			if all := allLocks(t, path); fmt.Sprint(all) != fmt.Sprint([]lockview.Lock{want}) {
				t.Errorf("All has %+v\nwant %+v", all, want)
			}
			l.stop()
			if ls := locks(t, path); len(ls) != 0 {
				t.Errorf("after its end: %+v", ls)
			}
		})
	}
}

// The kernel's table names the process that took the lock. It has ended, and its
// child has the lock: that is the one to name.
func TestInheritedFromTheDead(t *testing.T) {
	path := newFile(t)
	locks(t, path)
	l := start(t, "flock+heir", path)
	child := l.child()
	if _, err := l.cmd.Process.Wait(); err != nil { // and leave its input open
		t.Fatal(err)
	}
	if h := one(t, path); h.PID != child || h.Locker != l.pid || h.Others != nil || h.Waiting || h.Command == "" {
		t.Errorf("got %+v; want process %d with the lock of %d", h, child, l.pid)
	}
}

func TestSharedDescription(t *testing.T) {
	path := newFile(t)
	locks(t, path)
	l := start(t, "flock+child", path)
	if child, h := l.child(), one(t, path); h.PID != l.pid || !slices.Equal(h.Others, []int{child}) {
		t.Errorf("got %+v; want process %d, and %d among others", h, l.pid, child)
	}
}

// This process has the description, and the lower number; the other one took the lock.
func TestWhoTookItIsNamed(t *testing.T) {
	path := newFile(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	l := start(t, "inherited-flock", path, f)
	if h := one(t, path); h.PID != l.pid || h.Locker != l.pid || !slices.Equal(h.Others, []int{os.Getpid()}) {
		t.Errorf("got %+v; want process %d, and %d among others", h, l.pid, os.Getpid())
	}
	l.stop()
	if h := one(t, path); h.PID != os.Getpid() || h.Locker != l.pid {
		t.Errorf("after its end: %+v; want this process", h)
	}
}

func TestSeveralShared(t *testing.T) {
	path := newFile(t)
	for range 2 {
		f := lockedFile(t, path, unix.LOCK_SH)
		// A duplicate has the same lock and is no holder of its own.
		d, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(d)
	}
	other := start(t, "flock-shared", path)
	var pids []int
	for _, l := range locks(t, path) {
		if !l.Shared || l.Waiting || l.Others != nil {
			t.Errorf("%+v", l)
		}
		pids = append(pids, l.PID)
	}
	want := []int{os.Getpid(), os.Getpid(), other.pid}
	slices.Sort(want)
	if !slices.Equal(pids, want) {
		t.Errorf("processes %v; want %v", pids, want)
	}
}

// The kernel does not say who waits for an OFD lock.
func TestWaiters(t *testing.T) {
	for _, kind := range []string{"flock", "ofd", "posix"} {
		t.Run(kind, func(t *testing.T) {
			path := newFile(t)
			locks(t, path)
			holder := start(t, kind, path)
			a := start(t, "wait-"+kind, path)
			b := start(t, "wait-"+kind, path)
			ls := eventually(t, path, 2)
			if len(ls) != 3 || ls[0].Waiting || ls[0].PID != holder.pid {
				t.Fatalf("got %+v; want %d first, then those that wait", ls, holder.pid)
			}
			var pids []int
			for _, l := range ls[1:] {
				pids = append(pids, l.PID)
				if l.WaitsFor != holder.pid || !l.Waiting || l.Path != path || l.Claim != ls[0].Claim || l.File != ls[0].File ||
					strings.HasSuffix(l.Command, " "+path) != (kind != "ofd") {
					t.Errorf("%+v", l)
				}
			}
			want := []int{min(a.pid, b.pid), max(a.pid, b.pid)}
			if kind == "ofd" {
				want = []int{0, 0}
			}
			if slices.Sort(pids); !slices.Equal(pids, want) {
				t.Errorf("processes %v wait; want %v", pids, want)
			}
			if all := allLocks(t, path); fmt.Sprint(all) != fmt.Sprint(ls) {
				t.Errorf("All has\n%+v, Of\n%+v", all, ls)
			}
		})
	}
}

// The kernel's entry of the lock is larger than what is read at once.
func TestCrowd(t *testing.T) {
	path, other := newFile(t), newFile(t)
	lockedFile(t, path, unix.LOCK_EX)
	lockedFile(t, other, unix.LOCK_EX)
	locks(t, path)
	a := start(t, "wait-crowd", path)
	ls := eventually(t, path, crowdSize)
	for i, l := range ls {
		want := a.pid
		if i == 0 {
			want = os.Getpid()
		}
		if l.PID != want || l.Waiting != (i > 0) || l.Waiting && l.WaitsFor != os.Getpid() {
			t.Errorf("entry %d: %+v; want process %d", i, l, want)
		}
	}
	if l := one(t, other); l.PID != os.Getpid() || len(ls) != crowdSize+1 {
		t.Errorf("%d entries, and for the other file %+v", len(ls), l)
	}
}

// A reading of the table in which locks elsewhere come and go can lack this one, or have
// it twice.
func TestBesideLocksThatComeAndGo(t *testing.T) {
	start(t, "come-and-go", newFile(t))
	for how, looks := range map[int]int{unix.LOCK_EX: 500, unix.LOCK_SH: 100} {
		path := newFile(t)
		lockedFile(t, path, how)
		for i := range looks {
			if ls := locks(t, path); len(ls) != 1 || ls[0].PID != os.Getpid() {
				t.Fatalf("look %d: %+v", i, ls)
			}
		}
	}
}

// A waiter of this process counts once, whether the table has it or not.
func TestOwnWaiters(t *testing.T) {
	path := newFile(t)
	f := lockedFile(t, path, unix.LOCK_EX)
	file := one(t, path).File
	own := func(id *lockview.File) (ws []lockview.Waiter) {
		if id == nil {
			ws = append(ws, lockview.Waiter{File: lockview.File{Dev: 1, Ino: 2}, Path: "/elsewhere"})
			id = &file
		}
		for _, kind := range []lockview.Kind{lockview.Flock, lockview.OFD} {
			ws = append(ws, lockview.Waiter{Claim: lockview.Claim{Kind: kind}, File: *id, Listed: true},
				lockview.Waiter{Claim: lockview.Claim{Kind: kind, Start: 7}, File: *id, Path: path})
		}
		return ws
	}
	second, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	done := make(chan error)
	go func() { done <- unix.Flock(int(second.Fd()), unix.LOCK_EX) }()
	eventually(t, path, 1)
	var n int
	check := func(ls []lockview.Lock, err error) {
		must(t, err)
		n = 0
		for _, l := range ls {
			if l.Path != path || !l.Waiting {
				continue
			}
			waitsFor := os.Getpid()
			if l.Kind == lockview.OFD {
				waitsFor = 0
			}
			if n++; l.PID != os.Getpid() || l.WaitsFor != waitsFor || l.Command == "" {
				t.Errorf("%+v", l)
			}
		}
		if n != 4 {
			t.Errorf("%d wait; want 4: %+v", n, ls)
		}
	}
	check(lockview.Of(path, own))
	all, err := lockview.All(own)
	check(all, err)
	if !slices.ContainsFunc(all, func(l lockview.Lock) bool { return l.Path == "/elsewhere" && l.Waiting && l.WaitsFor == 0 }) {
		t.Errorf("All lacks the one that waits for a file without a lock: %+v", all)
	}
	must(t, f.Close())
	must(t, <-done)
	second.Close()
}

func TestMapped(t *testing.T) { mapped(t, newFile(t)) }

// A lock whose descriptor was closed lives on in a mapping of the file, unless the
// mapping is of another file, as on overlayfs. No process can be told to have it.
func mapped(t *testing.T, path string) {
	t.Helper()
	locks(t, path)
	f := lockedFile(t, path, unix.LOCK_EX)
	m, err := unix.Mmap(int(f.Fd()), 0, 10, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	f.Close()
	other, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer other.Close()
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
	must(t, unix.Munmap(m))
	if ls := locks(t, path); len(ls) != 0 {
		t.Errorf("after unmapping: %+v", ls)
	}
}

func TestHandedOn(t *testing.T) { handedOn(t) }

// Where a lock is handed on all the time, what is seen is never of one moment. Still
// there is one holder at most.
func handedOn(t *testing.T) {
	for _, verb := range []string{"toggle", "toggle-ofd"} {
		path := newFile(t)
		locks(t, path)
		for range 4 {
			start(t, verb, path)
		}
		for i := range 40 {
			ls := locks(t, path)
			if i%8 == 0 {
				ls = allLocks(t, path)
			}
			ls = slices.DeleteFunc(ls, func(l lockview.Lock) bool { return l.Waiting })
			if len(ls) > 1 {
				t.Fatalf("%s: %d hold an exclusive lock: %+v", verb, len(ls), ls)
			}
		}
	}
}

// With no descriptor left the answer is an error, or right.
func TestNoDescriptorLeft(t *testing.T) {
	path := newFile(t)
	locks(t, path)
	l := start(t, "flock", path)
	out, err := command("look-starving", path).Output()
	must(t, err)
	failed, right := 0, 0
	for line := range strings.Lines(strings.TrimPrefix(string(out), "started\n")) {
		switch {
		case strings.Contains(line, "too many open files"):
			failed++
		case line == fmt.Sprintf("pid %d locker %d command %v\n", l.pid, l.pid, true):
			right++
		default:
			t.Errorf("with few descriptors: %s", line)
		}
	}
	if failed < 3 || right == 0 {
		t.Errorf("%d errors and %d right answers: %s", failed, right, out)
	}
}

// lookers are processes that look.
var lookers = map[string]func(path string) error{
	"look": look,
	// with an equal lock on a file with the same numbers
	"look-beside": func(paths string) error {
		path, beside, _ := strings.Cut(paths, ":")
		f, err := os.Open(beside)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
			return err
		}
		return look(path)
	},
	"look-starving": func(path string) error {
		f, err := os.Open(path) // gets the lowest number that is free
		if err != nil {
			return err
		}
		next := uint64(f.Fd())
		f.Close()
		var limit unix.Rlimit
		unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
		for limit.Cur = next; limit.Cur < next+8; limit.Cur++ {
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
				return err
			}
			if err := look(path); err != nil {
				if !errors.Is(err, unix.EMFILE) {
					return fmt.Errorf("not for the reason that counts: %w", err)
				}
				fmt.Println(err)
			}
		}
		return nil
	},
}

func look(path string) error {
	ls, err := lockview.Of(path, nobody)
	for _, l := range ls {
		fmt.Println("pid", l.PID, "locker", l.Locker, "command", strings.HasSuffix(l.Command, " "+path))
	}
	return err
}

func TestOfNothing(t *testing.T) {
	locks(t, newFile(t))
	for _, path := range []string{filepath.Join(t.TempDir(), "missing"), ""} {
		if ls, err := lockview.Of(path, nobody); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Of(%q) = %+v, %v", path, ls, err)
		}
	}
}
