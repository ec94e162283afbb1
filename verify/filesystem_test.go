//go:build linux

package verify

import (
	"bytes"
	"context"
	"errors"
	"flag"
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

const insideVar = "FLOCKCTX_VERIFY_INSIDE"

// insideNamespace runs the test again in a mount namespace of its own, where it
// reports true: what is mounted there goes when the test does, however it ends,
// and the loop devices with it. It skips the test where there is no root.
func insideNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVar) == t.Name() {
		return true
	}
	needRoot(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := "^" + t.Name() + "$"
	if asked := flag.Lookup("test.run").Value.String(); strings.HasPrefix(asked, t.Name()+"/") {
		run = asked // only some of its subtests
	}
	cmd := exec.Command(exe, "-test.run", run, "-test.v", "-test.timeout", "30m",
		fmt.Sprintf("-seed=%d", *seedFlag), fmt.Sprintf("-full=%v", *fullFlag))
	cmd.Env = append(os.Environ(), insideVar+"="+t.Name(), "TMPDIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	runtime.LockOSThread() // see Pdeathsig
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		t.Skipf("SKIP: %s needs a mount namespace: %v", t.Name(), err)
	}
	err = cmd.Wait()
	t.Logf("in a mount namespace:\n%s", out.String())
	if err != nil {
		t.Fatal(err)
	}
	return false
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// mountImage makes a file system in a loop device and mounts it.
func mountImage(t *testing.T, megabytes int64, options string, mkfs ...string) (dir string) {
	t.Helper()
	needCommands(t, mkfs[0], "mount")
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("SKIP: %s needs loop devices", t.Name())
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, megabytes<<20); err != nil {
		t.Fatal(err)
	}
	command(t, mkfs[0], append(mkfs[1:], image)...)
	dir = t.TempDir()
	if options != "" {
		options = "," + options
	}
	if out, err := exec.Command("mount", "-o", "loop"+options, image, dir).CombinedOutput(); err != nil {
		t.Skipf("SKIP: %s: this machine cannot mount it: %s", t.Name(), bytes.TrimSpace(out))
	}
	unmountLater(t, dir)
	return dir
}

func unmountLater(t *testing.T, dir string) {
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// mountKinds are the file systems that the contract is tried on.
var mountKinds = []struct {
	name string
	dir  func(t *testing.T) string
}{
	{"ext4", func(t *testing.T) string { return mountImage(t, 32, "", "mkfs.ext4", "-q") }},
	{"xfs", func(t *testing.T) string { return mountImage(t, 320, "", "mkfs.xfs", "-q") }},
	{"btrfs subvolume", func(t *testing.T) string {
		needCommands(t, "btrfs")
		dir := mountImage(t, 128, "", "mkfs.btrfs", "-q")
		command(t, "btrfs", "-q", "subvolume", "create", dir+"/a")
		return dir + "/a"
	}},
	{"tmpfs", func(t *testing.T) string {
		dir := t.TempDir()
		if err := unix.Mount("verify", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		unmountLater(t, dir)
		return dir
	}},
	{"overlayfs", func(t *testing.T) string { return mountOverlay(t, nil) }},
	{"fuse without lock operations", func(t *testing.T) string { return mountFuse(t, fuseConfig{}) }},
	{"fuse with lock operations", func(t *testing.T) string { return mountFuse(t, fuseConfig{Locks: true}) }},
}

// mountOverlay mounts an overlay over a lower directory with files.
func mountOverlay(t *testing.T, files []string) (dir string) {
	t.Helper()
	base := t.TempDir()
	for _, d := range []string{"base", "base/lower", "base/upper", "base/work", "base/merged"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
		if d == "base" {
			// The upper directory must not be on an overlay itself.
			if err := unix.Mount("verify", base+"/base", "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			unmountLater(t, base+"/base")
		}
	}
	base += "/base"
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(base, "lower", f), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dir = base + "/merged"
	err := unix.Mount("overlay", dir, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base))
	if err != nil {
		t.Skipf("SKIP: %s: this machine cannot mount an overlay: %v", t.Name(), err)
	}
	unmountLater(t, dir)
	return dir
}

func TestFileSystems(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	for _, kind := range mountKinds {
		t.Run(kind.name, func(t *testing.T) {
			dir := kind.dir(t)
			eachWay(t, func(t *testing.T, o flockctx.Options) {
				work, err := os.MkdirTemp(dir, "contract")
				if err != nil {
					t.Fatal(err)
				}
				contract(t, work, o, strings.HasPrefix(kind.name, "fuse"))
			})
			t.Run("stress", func(t *testing.T) {
				p := plan{Seed: *seedFlag, Files: 2, Procs: 3, Goroutines: 3, Millis: 400, SharedPct: 30,
					Mechanisms: mechanisms, Waits: []flockctx.Wait{flockctx.WaitAuto, flockctx.WaitBlock, flockctx.WaitPoll},
					Convert: true, Hold: 200 * time.Microsecond, Faults: []string{"stop", "storm", "gc"}, Base: dir}
				sum := tally{Rounds: 1}
				if bad := runRound(t, p, &sum, ""); len(bad) > 0 {
					t.Errorf("%v\n%s", p, strings.Join(bad[:min(len(bad), 10)], "\n"))
				}
				t.Log(sum.String())
			})
			// On FUSE they wait for ever to see a thread wait in the kernel.
			if *fullFlag && !strings.HasPrefix(kind.name, "fuse") {
				t.Run("the tests of the root package", func(t *testing.T) { rootTests(t, dir) })
			}
		})
	}
}

// rootTests runs the tests of the root package with their files in dir.
func rootTests(t *testing.T, dir string) {
	exe := filepath.Join(t.TempDir(), "root.test")
	build := exec.Command("go", "test", "-c", "-o", exe, ".")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// The first needs a directory that every user may enter, the second one with
	// a short name.
	const skip = "TestHoldersOfAnotherUser|TestFIFOSocketAndDeviceAreRefusedAtOnce"
	t.Logf("SKIP: %s: %s", t.Name(), skip)
	run := exec.Command(exe, "-test.short", "-test.timeout", "4m", "-test.skip", skip)
	run.Dir = ".."
	run.Env = append(os.Environ(), "TMPDIR="+dir)
	began := time.Now()
	out, err := run.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out[max(0, len(out)-8000):])
	}
	t.Logf("took %v", time.Since(began).Round(time.Second))
}

// contract tries what docs/semantics promises, with another process, in dir.
func contract(t *testing.T, dir string, o flockctx.Options, fuse bool) {
	p := newPeer(t)
	defer p.kill()
	n := 0
	fresh := func() string {
		n++
		return filepath.Join(dir, fmt.Sprintf("file%d", n))
	}
	with := func(f func(*flockctx.Options)) flockctx.Options { c := o; f(&c); return c }
	shared := with(func(o *flockctx.Options) { o.Mode = flockctx.Shared })
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	// Modes, both ways round.
	for _, held := range []flockctx.Options{o, shared} {
		for _, want := range []flockctx.Options{o, shared} {
			path := fresh()
			result := "busy"
			if held.Mode == flockctx.Shared && want.Mode == flockctx.Shared {
				result = "ok"
			}
			p.must("ok", order{Do: "lock", Path: path, Opts: held})
			mustTry(t, result, path, want)
			p.must("ok", order{Do: "close"})
			l, err := flockctx.Lock(t.Context(), path, &held)
			check(err)
			p.must(result, order{Do: "try", Path: path, Opts: want})
			mustTry(t, result, path, want)
			check(l.Close())
		}
	}

	// A wait ends with the grant, and with its deadline, and leaves nothing.
	path := fresh()
	p.must("ok", order{Do: "lock", Path: path, Opts: o})
	_, err := flockctx.Lock(within(t, 20*time.Millisecond), path, &o)
	if outcome(err) != "ended" {
		t.Fatalf("past the deadline: %v", err)
	}
	granted := make(chan error)
	go func() {
		l, err := flockctx.Lock(within(t, 30*time.Second), path, &o)
		if err == nil {
			err = l.Close()
		}
		granted <- err
	}()
	if o.Wait == flockctx.WaitBlock {
		waitsInKernel(t, os.Getpid())
	}
	p.must("ok", order{Do: "close"})
	check(<-granted)
	mustTry(t, "ok", path, o)

	// The holder removes the file, and a waiter locks its successor.
	path = fresh()
	p.must("ok", order{Do: "lock", Path: path, Opts: with(func(o *flockctx.Options) { o.Remove = true })})
	go func() {
		l, err := flockctx.Lock(within(t, 30*time.Second), path, &o)
		if err == nil {
			var open, named os.FileInfo
			if open, err = l.File().Stat(); err == nil {
				if named, err = os.Stat(path); err == nil && !os.SameFile(open, named) {
					err = errors.New("locked a file that has no name")
				}
			}
			err = errors.Join(err, l.Close())
		}
		granted <- err
	}()
	if o.Wait == flockctx.WaitBlock {
		waitsInKernel(t, os.Getpid())
	}
	p.must("ok", order{Do: "close"})
	check(<-granted)

	// It is replaced under a handle that was unlocked, and the handle follows.
	path = fresh()
	l, err := flockctx.Lock(t.Context(), path, &o)
	check(err)
	check(l.Unlock())
	check(os.WriteFile(path+".new", nil, 0o600))
	check(os.Rename(path+".new", path))
	p.must("ok", order{Do: "lock", Path: path, Opts: o})
	if err := l.TryLock(); outcome(err) != "busy" {
		t.Fatalf("a handle whose file was replaced: %v", err)
	}
	p.must("ok", order{Do: "close"})
	check(l.Lock(t.Context()))
	p.must("busy", order{Do: "try", Path: path, Opts: o})
	check(l.Close())

	// Convert, down and up.
	l, err = flockctx.Lock(t.Context(), path, &o)
	check(err)
	check(l.Convert(t.Context(), flockctx.Shared))
	p.must("ok", order{Do: "try", Path: path, Opts: shared})
	err = l.Convert(within(t, 20*time.Millisecond), flockctx.Exclusive)
	if outcome(err) != "ended" || l.Mode() != flockctx.Shared || !l.Locked() {
		t.Fatalf("upgrade beside a shared holder: %v, %v", err, l.Mode())
	}
	p.must("busy", order{Do: "try", Name: "other", Path: path, Opts: o})
	p.must("ok", order{Do: "close"})
	check(l.Convert(t.Context(), flockctx.Exclusive))
	p.must("busy", order{Do: "try", Path: path, Opts: shared})
	check(l.Close())

	// O_TRUNC waits for the lock.
	path = fresh()
	check(os.WriteFile(path, []byte("content"), 0o600))
	p.must("ok", order{Do: "lock", Path: path, Opts: o})
	truncate := with(func(o *flockctx.Options) { o.Flag = os.O_RDWR | os.O_CREATE | os.O_TRUNC })
	mustTry(t, "busy", path, truncate)
	if b, _ := os.ReadFile(path); string(b) != "content" {
		t.Fatal("truncated under another holder's lock")
	}
	p.must("ok", order{Do: "close"})
	mustTry(t, "ok", path, truncate)
	if b, _ := os.ReadFile(path); len(b) != 0 {
		t.Fatal("not truncated under the lock")
	}

	// Names of one file are one lock.
	check(os.Link(path, path+".hard"))
	check(os.Symlink(filepath.Base(path), path+".soft"))
	set, err := flockctx.LockAll(within(t, 10*time.Second), []string{path + ".soft", path + ".hard", path}, &o)
	check(err)
	if len(set.Files()) != 1 {
		t.Fatalf("%d locks on one file", len(set.Files()))
	}
	p.must("busy", order{Do: "try", Path: path + ".hard", Opts: o})
	check(set.Close())

	// A directory, which is open for reading only.
	sub := fresh()
	check(os.Mkdir(sub, 0o700))
	d := shared
	if o.Mechanism == flockctx.BSD {
		d = o
	}
	if l, err := flockctx.TryLock(sub, &d); err == nil {
		if o.Mechanism == flockctx.BSD {
			p.must("busy", order{Do: "try", Path: sub, Opts: d})
		}
		check(l.Close())
	} else if !fuse {
		t.Fatalf("a directory: %v", err)
	} else if outcome(err) != "unsupported" && outcome(err) != "error" {
		t.Fatalf("a directory on fuse: %v", err)
	}

	// Ranges.
	if o.Mechanism == flockctx.OFD {
		part := func(start, length int64) flockctx.Options {
			return with(func(o *flockctx.Options) { o.Start, o.Length = start, length })
		}
		p.must("ok", order{Do: "lock", Path: path, Opts: part(10, 10)})
		mustTry(t, "ok", path, part(0, 10))
		mustTry(t, "ok", path, part(20, 0))
		mustTry(t, "busy", path, part(19, 1))
		mustTry(t, "busy", path, o)
		p.must("ok", order{Do: "close"})
	}

	// A holder that is killed.
	q := newPeer(t)
	q.must("ok", order{Do: "lock", Path: path, Opts: o})
	q.kill()
	l, err = flockctx.Lock(within(t, 10*time.Second), path, &o)
	check(err)
	check(l.Close())
}

// Two subvolumes of a btrfs have files of the same inode number, which are two
// locks; a snapshot of a file is another file too.
func TestSubvolumes(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	needCommands(t, "btrfs")
	dir := mountImage(t, 128, "", "mkfs.btrfs", "-q")
	command(t, "btrfs", "-q", "subvolume", "create", dir+"/a")
	if err := os.WriteFile(dir+"/a/lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "btrfs", "-q", "subvolume", "snapshot", dir+"/a", dir+"/b")
	var a, b unix.Stat_t
	unix.Stat(dir+"/a/lock", &a)
	unix.Stat(dir+"/b/lock", &b)
	if a.Ino != b.Ino {
		t.Fatalf("inodes %d and %d: this test proves nothing", a.Ino, b.Ino)
	}
	eachWay(t, func(t *testing.T, o flockctx.Options) {
		l, err := flockctx.Lock(t.Context(), dir+"/a/lock", &o)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		mustTry(t, "ok", dir+"/b/lock", o)
		mustTry(t, "busy", dir+"/a/lock", o)
		set, err := flockctx.LockAll(within(t, 100*time.Millisecond), []string{dir + "/b/lock"}, &o)
		if err != nil {
			t.Fatal(err)
		}
		set.Close()
	})
}

// A file of an overlay's lower directory is copied when it is first opened for
// writing: a lock taken before must exclude one taken after.
func TestOverlayCopyUp(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	for _, w := range waits {
		dir := mountOverlay(t, []string{"lock"})
		path := filepath.Join(dir, "lock")
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		o := flockctx.Options{Wait: w}
		l, err := flockctx.LockFile(t.Context(), f, &o)
		if err != nil {
			t.Fatal(err)
		}
		p := newPeer(t)
		p.must("busy", order{Do: "try", Path: path, Opts: o}) // opens it for writing
		mustTry(t, "busy", path, o)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		f.Close()
		p.must("ok", order{Do: "try", Path: path, Opts: o})
		mustTry(t, "busy", path, o)
		p.kill()
	}
}

func TestRemountedReadOnly(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	dir := t.TempDir()
	if err := unix.Mount("verify", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	unmountLater(t, dir)
	path := filepath.Join(dir, "lock")
	eachWay(t, func(t *testing.T, o flockctx.Options) {
		p := newPeer(t)
		defer p.kill()
		p.must("ok", order{Do: "lock", Path: path, Opts: o})
		p.must("ok", order{Do: "unlock"})
		// Open for writing it would keep the file system from the remount.
		p.must("ok", order{Do: "close"})
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		shared := o
		shared.Mode = flockctx.Shared
		p.must("ok", order{Do: "lock", Path: path, Opts: shared})
		if o.Mechanism == flockctx.BSD {
			mustTry(t, "busy", path, o)
		} else if _, err := flockctx.TryLock(path, &o); !errors.Is(err, syscall.EBADF) || outcome(err) != "error" || !strings.Contains(err.Error(), "writing") {
			t.Errorf("an exclusive OFD lock where nothing can be written: %v", err)
		}
		mustTry(t, "ok", path, shared)
		if _, err := flockctx.TryLock(path+"2", &o); !errors.Is(err, syscall.EROFS) || outcome(err) != "error" {
			t.Errorf("a new file: %v", err)
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
			t.Fatal(err)
		}
		p.must("ok", order{Do: "close"})
		mustTry(t, "ok", path, o)
	})
}

// A remount under a holder must not keep it from unlocking, and a Close that cannot
// remove the file must say so, and release the lock.
func TestReadOnlyUnderTheHolder(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	dir := t.TempDir()
	if err := unix.Mount("verify", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	unmountLater(t, dir)
	path := filepath.Join(dir, "lock")
	for _, w := range waits {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		// Open for reading only: a file open for writing refuses the remount.
		o := flockctx.Options{Wait: w, Remove: true, Flag: os.O_RDONLY | unix.O_NOFOLLOW}
		l, err := flockctx.Lock(t.Context(), path, &o)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		err = l.Close()
		if !errors.Is(err, syscall.EROFS) || outcome(err) != "error" || l.Locked() {
			t.Errorf("Close that cannot remove: %v, locked %v", err, l.Locked())
		}
		mustTry(t, "ok", path, flockctx.Options{})
		if l, err = flockctx.Lock(t.Context(), path, &o); err != nil {
			t.Fatal(err)
		}
		if err := l.Unlock(); err != nil {
			t.Error(err)
		}
		if err := l.Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("Close did not remove the file: %v", err)
		}
	}
}

// A file system without an inode to give: ENOSPC.
func TestNoSpaceToCreate(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	dir := t.TempDir()
	if err := unix.Mount("verify", dir, "tmpfs", 0, "nr_inodes=2,size=64k"); err != nil {
		t.Fatal(err)
	}
	unmountLater(t, dir)
	path := filepath.Join(dir, "first")
	mustTry(t, "ok", path, flockctx.Options{})
	refusedCreation(t, path, syscall.ENOSPC, func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	})
}

// A subvolume whose quota is used up: EDQUOT.
func TestQuotaExceeded(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	needCommands(t, "btrfs")
	dir := mountImage(t, 128, "", "mkfs.btrfs", "-q")
	command(t, "btrfs", "-q", "quota", "enable", dir)
	command(t, "btrfs", "-q", "subvolume", "create", dir+"/a")
	path := filepath.Join(dir, "a", "first")
	mustTry(t, "ok", path, flockctx.Options{})
	command(t, "btrfs", "qgroup", "limit", "32k", dir+"/a")
	unix.Sync()
	refusedCreation(t, path, syscall.EDQUOT, func() { command(t, "btrfs", "qgroup", "limit", "none", dir+"/a") })
}

// refusedCreation is for a directory where path exists, and no other file can be
// created until makeRoom was called.
func refusedCreation(t *testing.T, path string, want syscall.Errno, makeRoom func()) {
	dir := filepath.Dir(path)
	o := flockctx.Options{}
	mustTry(t, "ok", path, o)
	before := measure()
	for _, lock := range []func(path string) error{
		func(path string) error { _, err := flockctx.Lock(context.Background(), path, &o); return err },
		func(path string) error { _, err := flockctx.TryLock(path, &o); return err },
		func(path string) error {
			_, err := flockctx.LockAll(context.Background(), []string{filepath.Join(dir, "first"), path}, &o)
			return err
		},
		func(path string) error {
			l := flockctx.New(path, &o)
			defer l.Close()
			return l.Lock(context.Background())
		},
	} {
		second := filepath.Join(dir, "second")
		err := lock(second)
		var pe *fs.PathError
		if !errors.Is(err, want) || !errors.As(err, &pe) || pe.Path != second {
			t.Errorf("%v, want %v", err, want)
		}
		mustTry(t, "ok", path, o)
	}
	if err := leftBehind(before, before.Threads+16); err != nil {
		t.Error(err)
	}
	makeRoom()
	mustTry(t, "ok", filepath.Join(dir, "second"), o)
}
