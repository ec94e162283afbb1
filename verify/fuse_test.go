//go:build linux

package verify

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A fuseConfig says what a file system of ours shows, where, and how it answers.
type fuseConfig struct {
	Backing, Mount string
	Locks          bool          // it has lock operations; else the kernel locks for it
	Errno          syscall.Errno // answer to every request for a lock
	WaitErrno      syscall.Errno // answer to every request that has to wait
	InterruptAfter time.Duration // how late it answers an interrupt; negative: never
	Unstable       bool          // each name is another file whenever it is looked up
}

func init() { helpers["fuse"] = serveFuse }

func serveFuse(raw json.RawMessage) error {
	var c fuseConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	var root fs.InodeEmbedder
	var err error
	if c.Unstable {
		root = new(unstableRoot)
	} else if root, err = fs.NewLoopbackRoot(c.Backing); err != nil {
		return err
	}
	if c.Locks {
		data := root.(*fs.LoopbackNode).RootData
		data.NewNode = func(data *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
			n := &lockNode{LoopbackNode: fs.LoopbackNode{RootData: data}, config: c}
			n.changed = make(chan struct{})
			return n
		}
	}
	var none time.Duration
	server, err := fs.Mount(c.Mount, root, &fs.Options{
		EntryTimeout: &none, AttrTimeout: &none, NegativeTimeout: &none,
		MountOptions: fuse.MountOptions{EnableLocks: c.Locks, DirectMount: true, FsName: "verify", Name: "verify"}})
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	fmt.Scanln(new(string))
	return server.Unmount()
}

// An unstableRoot is a directory in which every name is a file of a new number whenever
// it is looked up, as in file systems that number their files anew all the time.
type unstableRoot struct {
	fs.Inode
	last atomic.Uint64
}

func (r *unstableRoot) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	out.Mode = fuse.S_IFREG | 0o600
	return r.NewInode(ctx, new(unstableFile), fs.StableAttr{Mode: fuse.S_IFREG, Ino: 1000 + r.last.Add(1)}), 0
}

type unstableFile struct{ fs.Inode }

func (*unstableFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (*unstableFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = fuse.S_IFREG | 0o600
	return 0
}

// A lockNode is a file with locks of our own. An open file, which is what owns a
// lock, is told by its handle.
type lockNode struct {
	fs.LoopbackNode
	config fuseConfig

	mu      sync.Mutex
	held    []fuseLock
	changed chan struct{} // closed, and made anew, when held changes
}

type fuseLock struct {
	file       fs.FileHandle
	flock      bool
	exclusive  bool
	start, end uint64
}

var (
	_ fs.NodeSetlker  = (*lockNode)(nil)
	_ fs.NodeSetlkwer = (*lockNode)(nil)
	_ fs.NodeGetlker  = (*lockNode)(nil)
	_ fs.NodeReleaser = (*lockNode)(nil)
)

func (n *lockNode) try(f fs.FileHandle, lk *fuse.FileLock, flags uint32) bool {
	want := fuseLock{f, flags&fuse.FUSE_LK_FLOCK != 0, lk.Typ == syscall.F_WRLCK, lk.Start, lk.End}
	if want.flock {
		want.start, want.end = 0, 1<<63-1
	}
	overlaps := func(h fuseLock) bool {
		return h.flock == want.flock && h.start <= want.end && want.start <= h.end
	}
	if lk.Typ != syscall.F_UNLCK {
		for _, h := range n.held {
			if h.file != f && overlaps(h) && (h.exclusive || want.exclusive) {
				return false
			}
		}
	}
	var keep []fuseLock
	for _, h := range n.held {
		if h.file != f || !overlaps(h) {
			keep = append(keep, h)
			continue
		}
		if h.start < want.start {
			left := h
			left.end = want.start - 1
			keep = append(keep, left)
		}
		if h.end > want.end {
			right := h
			right.start = want.end + 1
			keep = append(keep, right)
		}
	}
	if lk.Typ != syscall.F_UNLCK {
		keep = append(keep, want)
	}
	n.held = keep
	close(n.changed)
	n.changed = make(chan struct{})
	return true
}

func (n *lockNode) Getlk(ctx context.Context, f fs.FileHandle, owner uint64, lk *fuse.FileLock, flags uint32, out *fuse.FileLock) syscall.Errno {
	return syscall.ENOSYS
}

func (n *lockNode) Setlk(ctx context.Context, f fs.FileHandle, owner uint64, lk *fuse.FileLock, flags uint32) syscall.Errno {
	if n.config.Errno != 0 && lk.Typ != syscall.F_UNLCK {
		return n.config.Errno
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.try(f, lk, flags) {
		return syscall.EAGAIN
	}
	return 0
}

func (n *lockNode) Setlkw(ctx context.Context, f fs.FileHandle, owner uint64, lk *fuse.FileLock, flags uint32) syscall.Errno {
	if n.config.Errno != 0 {
		return n.config.Errno
	}
	done := ctx.Done()
	for {
		n.mu.Lock()
		ok := n.try(f, lk, flags)
		changed := n.changed
		n.mu.Unlock()
		if ok {
			return 0
		}
		if n.config.WaitErrno != 0 {
			return n.config.WaitErrno
		}
		select {
		case <-changed:
		case <-done:
			if n.config.InterruptAfter < 0 {
				done = nil
				continue
			}
			time.Sleep(n.config.InterruptAfter)
			return syscall.EINTR
		}
	}
}

func (n *lockNode) Release(ctx context.Context, f fs.FileHandle) syscall.Errno {
	n.mu.Lock()
	keep := n.held[:0]
	for _, h := range n.held {
		if h.file != f {
			keep = append(keep, h)
		}
	}
	n.held = keep
	close(n.changed)
	n.changed = make(chan struct{})
	n.mu.Unlock()
	if r, ok := f.(fs.FileReleaser); ok {
		return r.Release(ctx)
	}
	return 0
}

// mountFuse mounts a file system of ours, served by another process.
func mountFuse(t *testing.T, c fuseConfig) (dir string) {
	t.Helper()
	dir, _ = serveFuseIn(t, c)
	return dir
}

func serveFuseIn(t *testing.T, c fuseConfig) (dir string, daemon *helper) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("SKIP: %s needs /dev/fuse", t.Name())
	}
	c.Backing, c.Mount = t.TempDir(), t.TempDir()
	h := startHelper(t, nil, "fuse", c)
	if line := h.hear(t); line != "mounted" {
		t.Fatalf("fuse: %s", line)
	}
	t.Cleanup(func() {
		unix.Unmount(c.Mount, unix.MNT_FORCE|unix.MNT_DETACH)
		h.kill()
	})
	return c.Mount, h
}

// A daemon that is killed must not leave a waiter behind, nor a handle that cannot
// be closed.
func TestFuseDaemonKilled(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	for _, m := range mechanisms {
		for _, w := range []flockctx.Wait{flockctx.WaitAuto, flockctx.WaitPoll, flockctx.WaitBlock} {
			dir, daemon := serveFuseIn(t, fuseConfig{Locks: true})
			path := filepath.Join(dir, "lock")
			o := flockctx.Options{Mechanism: m, Wait: w}
			p := newPeer(t)
			p.must("ok", order{Do: "lock", Path: path, Opts: o})
			before := measure()
			result := make(chan error)
			go func() {
				_, err := flockctx.Lock(within(t, time.Minute), path, &o)
				result <- err
			}()
			if w == flockctx.WaitBlock {
				waitsInKernel(t, os.Getpid())
			} else {
				time.Sleep(20 * time.Millisecond)
			}
			daemon.kill()
			select {
			case err := <-result:
				if outcome(err) != "error" || !strings.Contains(err.Error(), path) {
					t.Errorf("%v %v: after the daemon's death: %v", m, w, err)
				}
				t.Logf("%v %v: %v", m, w, err)
			case <-time.After(20 * time.Second):
				t.Fatalf("%v %v: Lock hangs after the daemon's death", m, w)
			}
			if err := leftBehind(before, before.Threads+16); err != nil {
				t.Error(err)
			}
			// The holder's lock is gone with the daemon; that it cannot unlock
			// is said, and its end is not held up.
			a := p.do(order{Do: "close"})
			t.Logf("%v %v: the holder's Close: %s %s", m, w, a.Result, a.Error)
			if a.Result != "ok" && a.Result != "error" {
				t.Errorf("%v %v: the holder's Close: %s %s", m, w, a.Result, a.Error)
			}
			p.kill()
		}
	}
}

// On a FUSE file system that misbehaves the deadline must hold within one poll
// interval, whatever its daemon does, and the error must be clear.
func TestFuseThatMisbehaves(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	const pollMax = 50 * time.Millisecond
	for _, test := range []struct {
		name   string
		config fuseConfig
		held   bool   // another process holds the lock
		auto   string // outcome of WaitAuto and WaitPoll
		block  string // outcome of WaitBlock
		text   string // of the error, where it is not the deadline
		late   time.Duration
	}{
		{"answers an interrupt at once", fuseConfig{}, true, "ended", "ended", "", 0},
		{"answers an interrupt late", fuseConfig{InterruptAfter: 700 * time.Millisecond}, true, "ended", "ended", "", 700 * time.Millisecond},
		{"answers an interrupt never", fuseConfig{InterruptAfter: -1}, true, "ended", "", "", 0},
		{"false EDEADLK", fuseConfig{WaitErrno: syscall.EDEADLK}, true, "ended", "error", "deadlock", 0},
		{"ENOLCK while waiting", fuseConfig{WaitErrno: syscall.ENOLCK}, true, "ended", "error", "fuse", 0},
		{"ENOSYS", fuseConfig{Errno: syscall.ENOSYS}, false, "unsupported", "unsupported", "fuse", 0},
		{"ENOLCK", fuseConfig{Errno: syscall.ENOLCK}, false, "error", "error", "fuse", 0},
		{"EIO", fuseConfig{Errno: syscall.EIO}, false, "error", "error", "input/output error", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.config.Locks = true
			path := filepath.Join(mountFuse(t, test.config), "lock")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, m := range mechanisms {
				for _, w := range []flockctx.Wait{flockctx.WaitAuto, flockctx.WaitPoll, flockctx.WaitBlock} {
					o := flockctx.Options{Mechanism: m, Wait: w, Poll: flockctx.Backoff{Max: pollMax}}
					want := test.auto
					if w == flockctx.WaitBlock {
						if want = test.block; want == "" {
							continue // documented: it returns when the daemon does
						}
					}
					p := newPeer(t)
					if test.held {
						p.must("ok", order{Do: "lock", Path: path, Opts: o})
					}
					const timeout = 150 * time.Millisecond
					limit := timeout + pollMax + 300*time.Millisecond
					if w == flockctx.WaitBlock {
						limit += test.late
					}
					// The best of some tries, on a machine that is busy with other
					// things: a Lock that waits for the daemon is never in time.
					var l *flockctx.Flock
					var err error
					var took time.Duration
					for range 8 {
						began := time.Now()
						l, err = flockctx.Lock(within(t, timeout), path, &o)
						if took = time.Since(began); took <= limit || err == nil {
							break
						}
					}
					if got := outcome(err); got != want {
						t.Errorf("%v %v: %s (%v), want %s", m, w, got, err, want)
					}
					if err == nil {
						l.Close()
					} else if want != "ended" && (!strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), path)) {
						t.Errorf("%v %v: the error does not say %q and the path: %v", m, w, test.text, err)
					}
					t.Logf("%v %v: after %v: %v", m, w, took.Round(time.Millisecond), err)
					if took > limit {
						t.Errorf("%v %v: returned after %v", m, w, took)
					}
					if test.held {
						p.must("ok", order{Do: "close"})
						mustTry(t, "ok", path, o)
					}
					p.kill()
				}
			}
		})
	}
}

// The same with a daemon that never answers an interrupt and WaitBlock, where Lock
// returns when the daemon does: the end of ctx must win over the grant then.
func TestFuseThatNeverAnswersAnInterruptInTheKernel(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	for _, m := range mechanisms {
		path := filepath.Join(mountFuse(t, fuseConfig{Locks: true, InterruptAfter: -1}), "lock")
		o := flockctx.Options{Mechanism: m, Wait: flockctx.WaitBlock}
		p := newPeer(t)
		p.must("ok", order{Do: "lock", Path: path, Opts: o})
		ctx := within(t, 50*time.Millisecond)
		result := make(chan error)
		go func() {
			_, err := flockctx.Lock(ctx, path, &o)
			result <- err
		}()
		select {
		case err := <-result:
			t.Fatalf("%v: returned before the daemon answered: %v", m, err)
		case <-time.After(300 * time.Millisecond):
		}
		p.must("ok", order{Do: "close"})
		select {
		case err := <-result:
			if outcome(err) != "ended" {
				t.Errorf("%v: granted after the end of ctx: %v", m, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%v: hangs after the grant", m)
		}
		mustTry(t, "ok", path, o)
		p.kill()
	}
}

// A path that never names the file that opening it gives, since the file system has no
// stable inode numbers, cannot be locked. Lock has to notice, and not to be busy with
// it until then.
func TestFuseWithoutStableInodes(t *testing.T) {
	if !insideNamespace(t) {
		return
	}
	path := filepath.Join(mountFuse(t, fuseConfig{Unstable: true}), "lock")
	var a, b unix.Stat_t
	for _, st := range []*unix.Stat_t{&a, &b} {
		if err := unix.Stat(path, st); err != nil {
			t.Fatal(err)
		}
	}
	if a.Ino == b.Ino {
		t.Fatalf("the file has the inode number %d each time, so this tests nothing", a.Ino)
	}
	before := measure()
	// Most of the 1000 rounds are 1.5 to 2 ms apart.
	o := flockctx.Options{Poll: flockctx.Backoff{Min: 2 * time.Millisecond, Max: 2 * time.Millisecond}}
	for name, call := range map[string]func(ctx context.Context, o *flockctx.Options) error{
		"Lock": func(ctx context.Context, o *flockctx.Options) error {
			_, err := flockctx.Lock(ctx, path, o)
			return err
		},
		"LockAll": func(ctx context.Context, o *flockctx.Options) error {
			_, err := flockctx.LockAll(ctx, []string{path, path + "2"}, o)
			return err
		},
		"Flock.Lock": func(ctx context.Context, o *flockctx.Options) error { return flockctx.New(path, o).Lock(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			err := call(within(t, 2*time.Minute), &o)
			took := time.Since(began)
			if got := outcome(err); got != "unsupported" || !strings.Contains(err.Error(), path) {
				t.Fatalf("%s (%v), want unsupported, and the path", got, err)
			}
			t.Logf("after %v: %v", took.Round(time.Millisecond), err)
			if took < 900*time.Millisecond {
				t.Errorf("1000 rounds in %v: it runs hot", took)
			}
			// The end of ctx comes first.
			slow := flockctx.Options{Poll: flockctx.Backoff{Min: time.Second, Max: time.Second}}
			if got := outcome(call(within(t, 300*time.Millisecond), &slow)); got != "ended" {
				t.Errorf("with a short deadline: %s, want ended", got)
			}
		})
	}
	try := make(chan error, 1)
	go func() { _, err := flockctx.TryLock(path, nil); try <- err }()
	select {
	case err := <-try:
		if outcome(err) != "unsupported" {
			t.Errorf("TryLock: %v, want unsupported", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("TryLock hangs")
	}
	if err := leftBehind(before, before.Threads+16); err != nil {
		t.Error(err)
	}
}
