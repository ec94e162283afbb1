//go:build linux

package verify

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// realPID returns the number of the peer in our PID namespace: its own, or that of
// the process that unshare(1) or a shell started in its place.
func (p *peer) realPID() int {
	pid := p.pid()
	for {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		children := strings.Fields(string(b))
		if len(children) != 1 {
			return pid
		}
		pid, _ = strconv.Atoi(children[0])
	}
}

// exclude checks that the peer, which knows the file by another name, and we keep
// each other out, in all modes and ways.
func exclude(t *testing.T, p *peer, theirs, ours string) {
	t.Helper()
	for _, m := range mechanisms {
		for _, w := range waits {
			o := flockctx.Options{Mechanism: m, Wait: w}
			shared := o
			shared.Mode = flockctx.Shared
			p.must("ok", order{Do: "lock", Path: theirs, Opts: o})
			mustTry(t, "busy", ours, o)
			mustTry(t, "busy", ours, shared)
			granted := make(chan error)
			go func() {
				l, err := flockctx.Lock(within(t, 30*time.Second), ours, &o)
				if err == nil {
					err = l.Close()
				}
				granted <- err
			}()
			if w == flockctx.WaitBlock {
				waitsInKernel(t, os.Getpid())
			}
			p.must("ok", order{Do: "close"})
			if err := <-granted; err != nil {
				t.Fatal(err)
			}
			l, err := flockctx.Lock(t.Context(), ours, &shared)
			if err != nil {
				t.Fatal(err)
			}
			p.must("busy", order{Do: "try", Path: theirs, Opts: o})
			p.must("ok", order{Do: "try", Path: theirs, Opts: shared})
			p.must("ok", order{Do: "close"})
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// rightHolders checks what Holders says of a lock that the process pid holds. With
// seen it must name it, and otherwise it may say that it does not know.
func rightHolders(t *testing.T, who string, hs []flockctx.Holder, m flockctx.Mechanism, pid int, seen bool) {
	t.Helper()
	found := false
	for _, h := range hs {
		if h.Waiting || h.Mechanism != m {
			t.Errorf("%s: Holders shows what is not there: %+v", who, h)
		}
		if h.PID != 0 && h.PID != pid || len(h.Others) > 0 {
			t.Errorf("%s: Holders names a wrong process: %+v, the holder is %d", who, h, pid)
		}
		found = found || h.PID == pid
	}
	if seen && !found {
		t.Errorf("%s: Holders does not name the holder %d: %+v", who, pid, hs)
	}
}

// holdersBothWays has the peer hold the lock and us ask, and the other way round.
func holdersBothWays(t *testing.T, p *peer, theirs, ours string, theySee bool) {
	t.Helper()
	for _, m := range mechanisms {
		o := flockctx.Options{Mechanism: m}
		p.must("ok", order{Do: "lock", Path: theirs, Opts: o})
		hs, err := flockctx.Holders(ours)
		if err != nil {
			t.Fatal(err)
		}
		rightHolders(t, "outside", hs, m, p.realPID(), true)
		own := p.must("ok", order{Do: "holders", Path: theirs})
		rightHolders(t, "the holder itself", own.Holders, m, own.PID, true)
		p.must("ok", order{Do: "close"})

		l, err := flockctx.Lock(t.Context(), ours, &o)
		if err != nil {
			t.Fatal(err)
		}
		pid := os.Getpid()
		a := p.do(order{Do: "holders", Path: theirs})
		if a.Result != "ok" {
			t.Fatalf("Holders in the namespace: %s", a.Error)
		}
		if !theySee {
			pid = 0 // we have no number there
		}
		rightHolders(t, "inside", a.Holders, m, pid, theySee && pid != 0)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBindMount(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	base := t.TempDir()
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	for _, d := range []string{a, b} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(a, b, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	unmountLater(t, b)
	p := newPeer(t)
	defer p.kill()
	exclude(t, p, b+"/lock", a+"/lock")
	holdersBothWays(t, p, b+"/lock", a+"/lock", true)
	// Goroutines of one process that use both names.
	l, err := flockctx.Lock(t.Context(), a+"/lock", nil)
	if err != nil {
		t.Fatal(err)
	}
	mustTry(t, "busy", b+"/lock", flockctx.Options{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	set, err := flockctx.LockAll(within(t, 10*time.Second), []string{b + "/lock", a + "/lock"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(set.Files()); n != 1 {
		t.Errorf("%d locks on one file", n)
	}
	set.Close()
}

func TestMountNamespaces(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	needCommands(t, "unshare", "mount")
	base := t.TempDir()
	here, there := filepath.Join(base, "here"), filepath.Join(base, "there")
	for _, d := range []string{here, there} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p := newPeer(t, "unshare", "-m", "--propagation", "private", "sh", "-c",
		`mount --bind "$0" "$1" && shift && exec "$@"`, here, there)
	defer p.kill()
	exclude(t, p, there+"/lock", here+"/lock")
	holdersBothWays(t, p, there+"/lock", here+"/lock", true)

	// The same path, with a file system of the namespace's own: another file.
	q := newPeer(t, "unshare", "-m", "--propagation", "private", "sh", "-c",
		`mount -t tmpfs verify "$0" && exec "$@"`, here)
	defer q.kill()
	q.must("ok", order{Do: "lock", Path: here + "/lock"})
	mustTry(t, "ok", here+"/lock", flockctx.Options{})
	hs, err := flockctx.Holders(here + "/lock")
	if err != nil || len(hs) > 0 {
		t.Errorf("Holders of a file that nobody locked: %+v, %v", hs, err)
	}
}

func TestUserNamespace(t *testing.T) {
	needCommands(t, "unshare")
	needUnshare(t, "-U", "-r")
	path := filepath.Join(t.TempDir(), "lock")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, "unshare", "-U", "-r")
	defer p.kill()
	exclude(t, p, path, path)
	// Whether it may look at our descriptors is for the kernel to say.
	for _, m := range mechanisms {
		o := flockctx.Options{Mechanism: m}
		p.must("ok", order{Do: "lock", Path: path, Opts: o})
		hs, err := flockctx.Holders(path)
		if err != nil {
			t.Fatal(err)
		}
		rightHolders(t, "outside", hs, m, p.realPID(), os.Geteuid() == 0)
		p.must("ok", order{Do: "close"})
		l, err := flockctx.Lock(t.Context(), path, &o)
		if err != nil {
			t.Fatal(err)
		}
		a := p.must("ok", order{Do: "holders", Path: path})
		rightHolders(t, "inside", a.Holders, m, os.Getpid(), false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// needUnshare skips the test where the machine does not let it make a namespace.
func needUnshare(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("unshare", append(args, "true")...).CombinedOutput(); err != nil {
		t.Skipf("SKIP: %s: unshare %v: %v: %s", t.Name(), args, err, out)
	}
}

// A PID namespace with a /proc of its own, as in a container: nobody inside has a
// number for us, and a number of ours may be somebody else's there.
func TestPIDNamespace(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	needCommands(t, "unshare")
	needUnshare(t, "-p", "-f", "--mount-proc")
	path := filepath.Join(t.TempDir(), "lock")
	p := newPeer(t, "unshare", "-p", "-f", "--mount-proc", "--kill-child")
	defer p.kill()
	exclude(t, p, path, path)
	holdersBothWays(t, p, path, path, false)
	// Waiters are seen from outside with our numbers too.
	for _, m := range mechanisms {
		o := flockctx.Options{Mechanism: m, Wait: flockctx.WaitBlock}
		l, err := flockctx.Lock(t.Context(), path, &o)
		if err != nil {
			t.Fatal(err)
		}
		p.start(order{Do: "lock", Path: path, Opts: o})
		waitsInKernel(t, p.realPID())
		hs, err := flockctx.Holders(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hs {
			want := os.Getpid()
			if h.Waiting {
				want = p.realPID()
				if h.WaitsFor != 0 && h.WaitsFor != os.Getpid() {
					t.Errorf("waits for a wrong process: %+v", h)
				}
			}
			if h.PID != 0 && h.PID != want {
				t.Errorf("Holders names a wrong process: %+v, want %d", h, want)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if a := p.answer(); a.Result != "ok" {
			t.Fatal(a.Error)
		}
		p.must("ok", order{Do: "close"})
	}
}

// A PID namespace that sees the /proc of the one outside: its numbers are not ours,
// so Holders must refuse rather than name somebody.
func TestPIDNamespaceWithForeignProc(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	needCommands(t, "unshare")
	needUnshare(t, "-p", "-f")
	path := filepath.Join(t.TempDir(), "lock")
	p := newPeer(t, "unshare", "-p", "-f", "--kill-child")
	defer p.kill()
	exclude(t, p, path, path)
	l, err := flockctx.Lock(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := p.do(order{Do: "holders", Path: path})
	if a.Result != "unsupported" {
		t.Errorf("Holders with a /proc of another PID namespace: %s %+v (%s)", a.Result, a.Holders, a.Error)
	}
}

// On btrfs stat(2) gives another device than the kernel's table of locks.
func TestHoldersOnSubvolumes(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	needCommands(t, "btrfs")
	dir := mountImage(t, 128, "", "mkfs.btrfs", "-q")
	for _, sub := range []string{"a", "b"} {
		command(t, "btrfs", "-q", "subvolume", "create", filepath.Join(dir, sub))
		if err := os.WriteFile(filepath.Join(dir, sub, "lock"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, b := newPeer(t), newPeer(t)
	defer a.kill()
	defer b.kill()
	for _, m := range mechanisms {
		o := flockctx.Options{Mechanism: m}
		a.must("ok", order{Do: "lock", Path: dir + "/a/lock", Opts: o})
		b.must("ok", order{Do: "lock", Path: dir + "/b/lock", Opts: o})
		for sub, p := range map[string]*peer{"a": a, "b": b} {
			hs, err := flockctx.Holders(filepath.Join(dir, sub, "lock"))
			if err != nil {
				t.Fatal(err)
			}
			if len(hs) != 1 {
				t.Errorf("%v, subvolume %s: %+v", m, sub, hs)
			}
			rightHolders(t, "subvolume "+sub, hs, m, p.pid(), true)
		}
		a.must("ok", order{Do: "close"})
		b.must("ok", order{Do: "close"})
	}
}
