package lockview

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A process is a directory below /proc. A descriptor of the directory stays that of
// this process, also when its number goes to another one.
type process struct {
	pid  int
	name string // of the directory, for errors
	dir  int
	err  error // the first one that does not mean that the process is gone, or closed to this one
}

// visit calls fn with the process of that number, unless it is gone.
func visit(pid int, fn func(p *process)) error {
	p := &process{pid: pid, name: "/proc/" + strconv.Itoa(pid), dir: unix.AT_FDCWD}
	dir := p.open(p.name, unix.O_PATH|unix.O_DIRECTORY)
	if dir >= 0 {
		defer unix.Close(dir)
		p.dir = dir
		fn(p)
	}
	return p.err
}

// open returns a negative number on an error.
func (p *process) open(name string, flag int) int {
	fd, err := open(p.dir, name, flag)
	if err != nil {
		p.note("open", name, err)
		return -1
	}
	return fd
}

func (p *process) note(op, name string, err error) {
	switch err {
	case unix.ENOENT, unix.ESRCH, unix.EACCES, unix.EPERM:
		return
	}
	if p.dir != unix.AT_FDCWD {
		name = p.name + "/" + name
	}
	if p.err == nil {
		p.err = &fs.PathError{Op: op, Path: name, Err: err}
	}
}

// read is empty where the file may not be read, or is gone.
func (p *process) read(name string) string {
	fd := p.open(name, unix.O_RDONLY)
	if fd < 0 {
		return ""
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 1024)
	for {
		n, err := retry(func() (int, error) { return unix.Read(fd, b[len(b):cap(b)]) })
		if err != nil {
			p.note("read", name, err)
			return ""
		}
		if n == 0 {
			return string(b)
		}
		b = slices.Grow(b[:len(b)+n], 512)
	}
}

// descriptors returns the names of the process's descriptors.
func (p *process) descriptors() []string {
	fd := p.open("fd", unix.O_RDONLY|unix.O_DIRECTORY)
	if fd < 0 {
		return nil
	}
	defer unix.Close(fd)
	return readNames(fd)
}

// identify returns the identity of a descriptor's file as far as it is known
// without asking a server, which may not answer.
func (p *process) identify(fd string) (id File, ok bool) {
	var st unix.Statx_t
	if unix.Statx(p.dir, "fd/"+fd, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st) != nil {
		return File{}, false
	}
	return File{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino}, true
}

func (p *process) link(name string) string {
	var b [4096]byte
	n, err := unix.Readlinkat(p.dir, name, b[:])
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// command returns the command line, or the name in brackets where there is none.
func (p *process) command() string {
	text := p.read("cmdline")
	if text = strings.ReplaceAll(strings.TrimRight(text, "\x00"), "\x00", " "); text != "" {
		return text
	}
	if text = p.read("comm"); text != "" {
		return "[" + strings.TrimSuffix(text, "\n") + "]"
	}
	return ""
}

// fdinfo is what is of use in /proc/PID/fdinfo/FD.
type fdinfo struct {
	mount int
	ino   uint64 // 0 before Linux 5.14
	locks []lock
}

func (p *process) fdinfo(fd string) (fi fdinfo) {
	for line := range strings.Lines(p.read("fdinfo/" + fd)) {
		key, val, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		switch val = strings.TrimSpace(val); key {
		case "mnt_id":
			fi.mount, _ = strconv.Atoi(val)
		case "ino":
			fi.ino, _ = strconv.ParseUint(val, 10, 64)
		case "lock":
			if l, _, _, ok := parseLock(val); ok {
				fi.locks = append(fi.locks, l)
			}
		}
	}
	return fi
}

// mountDevice returns the device of a file system in /proc/self/mountinfo.
func mountDevice(text string, mount int) (dev uint64, ok bool) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != strconv.Itoa(mount) {
			continue
		}
		major, minor, _ := strings.Cut(f[2], ":")
		a, err1 := strconv.ParseUint(major, 10, 32)
		b, err2 := strconv.ParseUint(minor, 10, 32)
		return unix.Mkdev(uint32(a), uint32(b)), err1 == nil && err2 == nil
	}
	return 0, false
}

// processes returns the numbers of all that /proc shows.
func processes() (pids []int, err error) {
	fd, err := open(unix.AT_FDCWD, "/proc", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, procError("open", "/proc", err)
	}
	defer unix.Close(fd)
	for _, name := range readNames(fd) {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// checkProc returns an error where /proc is not that of this PID namespace, in
// which the numbers of processes are worth nothing.
func checkProc() error {
	switch self, err := os.Readlink("/proc/self"); {
	case errors.Is(err, fs.ErrNotExist):
		return unsupported("there is no /proc")
	case err != nil:
		return err
	case self != strconv.Itoa(os.Getpid()):
		return unsupported("/proc is that of another PID namespace")
	}
	return nil
}

// seesAll reports whether this process is in the first PID namespace. In others the
// table hides the locks of processes outside, and of those that have ended.
var seesAll = sync.OnceValue(func() bool {
	ns, _ := os.Readlink("/proc/self/ns/pid")
	return ns == "pid:[4026531836]" // PROC_PID_INIT_INO, a constant of the kernel
})

// kcmp compares the open file descriptions of two descriptors: 0 is the same one,
// and the order of others is that of kcmp(2).
func kcmp(pid1, fd1, pid2, fd2 int) (order int, err error) {
	const file = 0 // KCMP_FILE
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), file, uintptr(fd1), uintptr(fd2), 0)
	if errno != 0 {
		return 0, errno
	}
	if r == 1 {
		return -1, nil
	}
	return int(r), nil
}

func unsupported(text string) error { return fmt.Errorf("%s: %w", text, errors.ErrUnsupported) }

// procError is an error of a file below /proc. That one does not exist says nothing
// of the file whose holders are looked for.
func procError(op, path string, err error) error {
	if err == unix.ENOENT {
		return unsupported("there is no " + path)
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

func open(dir int, name string, flag int) (int, error) {
	return retry(func() (int, error) { return unix.Openat(dir, name, flag|unix.O_CLOEXEC, 0) })
}

// retry calls fn again while a signal interrupts it.
func retry(fn func() (int, error)) (n int, err error) {
	for {
		if n, err = fn(); err != unix.EINTR {
			return n, err
		}
	}
}

func readNames(dir int) (names []string) {
	buf := make([]byte, 8192)
	for {
		n, err := retry(func() (int, error) { return unix.ReadDirent(dir, buf) })
		if err != nil || n <= 0 {
			return names
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
