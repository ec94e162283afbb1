//go:build linux

package flockctx_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A FUSE daemon of the tests, which speaks the kernel's protocol (linux/fuse.h) itself:
// so it can be slower, deafer and stranger than any library lets it be.

// A daemon serves a file system with the empty files a to z in a process of its own, and
// does as it is told:
//
//	locks     it has lock operations; else the kernel locks by itself (at the start only)
//	same      its files have one inode number (likewise)
//	busy      a lock is taken: a try fails, and a wait is not answered, nor interrupted
//	free      a lock is granted
//	fail N    waits that are under way fail with errno N
//	hang      no name is looked up any more
type daemon struct {
	dir   string
	stdin io.WriteCloser
	out   *bufio.Reader
}

// withFUSE runs the command name in a mount namespace of its own, where it may start
// daemons.
func withFUSE(t *testing.T, name string, args ...string) {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil || os.Geteuid() != 0 {
		t.Skipf("SKIP: %s needs root and /dev/fuse", t.Name())
	} else {
		f.Close()
	}
	cmd := newCommand(t, name, append([]string{t.TempDir()}, args...))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	err := cmd.Start()
	if errors.Is(err, unix.EPERM) {
		t.Skipf("SKIP: %s: no mount namespace: %v", t.Name(), err)
	}
	must(t, err)
	hung := time.AfterFunc(2*patience, func() { cmd.Process.Signal(unix.SIGQUIT) })
	defer hung.Stop()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// startDaemon mounts a new daemon's file system on dir. With stop its files fail, and
// all that waits for it ends.
func startDaemon(dir string, orders ...string) (d *daemon, stop func(), err error) {
	cmd := selfCommand("fuse-daemon", append([]string{dir}, orders...))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	d = &daemon{dir: dir}
	if d.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	d.out = bufio.NewReader(out)
	stop = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
		unix.Unmount(dir, unix.MNT_DETACH)
	})
	if line, err := d.out.ReadString('\n'); line != "ok\n" {
		stop()
		return nil, nil, fmt.Errorf("the daemon says %q, %v", line, err)
	}
	return d, stop, nil
}

func (d *daemon) path(name string) string { return d.dir + "/" + name }

// do gives an order, and returns when it is in force.
func (d *daemon) do(order string) error {
	if _, err := fmt.Fprintln(d.stdin, order); err != nil {
		return err
	}
	line, err := d.out.ReadString('\n')
	if err == nil && line != "ok\n" {
		err = errors.New(strings.TrimSpace(line))
	}
	return err
}

var _ = registerCommand("fuse-daemon", func(args []string) error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
	if err := unix.Mount("test", args[0], "fuse.test", 0, options); err != nil {
		return err
	}
	s := &fuseServer{fd: fd}
	for _, order := range args[1:] {
		s.obey(order)
	}
	go s.serve()
	fmt.Println("ok")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		s.obey(in.Text())
		fmt.Println("ok")
	}
	return nil
})

type fuseServer struct {
	fd int

	mu      sync.Mutex
	locks   bool
	same    bool
	busy    bool
	hang    bool
	waiting []uint64 // requests for a lock that are not answered
}

func (s *fuseServer) obey(order string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errno unix.Errno
	switch verb, n, _ := strings.Cut(order, " "); verb {
	case "locks":
		s.locks = true
		return
	case "same":
		s.same = true
		return
	case "hang":
		s.hang = true
		return
	case "busy":
		s.busy = true
		return
	case "free":
		s.busy = false
	case "fail":
		number, _ := strconv.Atoi(n)
		errno = unix.Errno(number)
	}
	for _, unique := range s.waiting {
		s.reply(unique, errno, nil)
	}
	s.waiting = nil
}

var native = binary.NativeEndian

func (s *fuseServer) reply(unique uint64, errno unix.Errno, body []byte) {
	b := native.AppendUint32(nil, uint32(16+len(body)))
	b = native.AppendUint32(b, uint32(-int32(errno)))
	b = native.AppendUint64(b, unique)
	unix.Write(s.fd, append(b, body...))
}

// attr is a struct fuse_attr.
func (s *fuseServer) attr(node uint64) []byte {
	ino, mode := node, uint32(0o100666)
	if s.same {
		ino = 42
	}
	if node == 1 {
		ino, mode = 1, 0o40777
	}
	a := make([]byte, 88)
	native.PutUint64(a, ino)
	native.PutUint32(a[60:], mode)
	native.PutUint32(a[64:], 1) // links
	return a
}

func (s *fuseServer) serve() {
	buf := make([]byte, 1<<17)
	for {
		n, err := unix.Read(s.fd, buf)
		if err == unix.EINTR || err == unix.ENOENT || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			os.Exit(0) // unmounted
		}
		s.mu.Lock()
		s.answer(buf[:n])
		s.mu.Unlock()
	}
}

// answer answers one request, or keeps it. The mutex is held.
func (s *fuseServer) answer(req []byte) {
	op, unique, node := native.Uint32(req[4:]), native.Uint64(req[8:]), native.Uint64(req[16:])
	switch op {
	case 26: // INIT: version 7.31
		b := make([]byte, 64)
		native.PutUint32(b, 7)
		native.PutUint32(b[4:], 31)
		native.PutUint32(b[8:], 1<<16)
		if s.locks {
			native.PutUint32(b[12:], 1<<10|1<<1) // FUSE_FLOCK_LOCKS, FUSE_POSIX_LOCKS
		}
		native.PutUint16(b[16:], 16)
		native.PutUint16(b[18:], 12)
		native.PutUint32(b[20:], 4096)
		s.reply(unique, 0, b)
	case 1: // LOOKUP
		name, _, _ := bytes.Cut(req[40:], []byte{0})
		switch {
		case s.hang:
		case len(name) != 1 || name[0] < 'a' || name[0] > 'z':
			s.reply(unique, unix.ENOENT, nil)
		default:
			node := uint64(name[0]-'a') + 2
			b := make([]byte, 40)
			native.PutUint64(b, node)
			s.reply(unique, 0, append(b, s.attr(node)...))
		}
	case 3, 4: // GETATTR, SETATTR
		s.reply(unique, 0, append(make([]byte, 16), s.attr(node)...))
	case 14, 27: // OPEN, OPENDIR
		s.reply(unique, 0, make([]byte, 16))
	case 18, 25, 29: // RELEASE, FLUSH, RELEASEDIR
		s.reply(unique, 0, nil)
	case 32, 33: // SETLK, SETLKW; a lock of type F_UNLCK is granted
		switch {
		case !s.busy || native.Uint32(req[40+32:]) == unix.F_UNLCK:
			s.reply(unique, 0, nil)
		case op == 32:
			s.reply(unique, unix.EAGAIN, nil)
		default:
			s.waiting = append(s.waiting, unique)
		}
	case 2, 36, 42: // FORGET, INTERRUPT, BATCH_FORGET: no answer
	default:
		s.reply(unique, unix.ENOSYS, nil)
	}
}
