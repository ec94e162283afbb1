//go:build linux

package flockctx

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A process is a directory below /proc.
type process struct {
	pid, task int
	dir       int    // descriptor that base is relative to
	base      string // directory of the process or of one of its threads
}

func (p *process) open(name string, flag int) (int, error) {
	return retry(func() (int, error) { return unix.Openat(p.dir, p.base+"/"+name, flag|unix.O_CLOEXEC, 0) })
}

func (p *process) read(name string) (string, error) {
	fd, err := p.open(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 1024)
	for {
		n, err := retry(func() (int, error) { return unix.Read(fd, b[len(b):cap(b)]) })
		if err != nil {
			return "", err
		}
		if n == 0 {
			return string(b), nil
		}
		b = slices.Grow(b[:len(b)+n], 512)
	}
}

func (p *process) names(name string) ([]string, error) {
	fd, err := p.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return readNames(fd, name), nil
}

// identify returns the identity of a descriptor's file as far as it is known
// without asking a server, which may not answer.
func (p *process) identify(fd string) (fileID, bool) {
	name := p.base + "/fd/" + fd
	var stx unix.Statx_t
	err := unix.Statx(p.dir, name, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &stx)
	if err == nil {
		return fileID{unix.Mkdev(stx.Dev_major, stx.Dev_minor), stx.Ino}, true
	}
	if err != unix.ENOSYS && err != unix.EPERM { // EPERM: a container's old filter
		return fileID{}, false
	}
	var st unix.Stat_t
	if unix.Fstatat(p.dir, name, &st, 0) != nil {
		return fileID{}, false
	}
	return fileID{uint64(st.Dev), uint64(st.Ino)}, true
}

func (p *process) link(name string) string {
	var b [4096]byte
	n, err := unix.Readlinkat(p.dir, p.base+"/"+name, b[:])
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// fdinfo is empty where it may not be read, or is gone.
func (p *process) fdinfo(fd string) fdinfo {
	text, _ := p.read("fdinfo/" + fd)
	return parseFdinfo(text)
}

// deviceOf returns the device of a file system that the process has mounted, or 0.
func (p *process) deviceOf(mount int) uint64 {
	text, _ := p.read("mountinfo")
	dev, _ := mountDevice(text, mount)
	return dev
}

// command returns the command line, or the name in brackets where there is none.
func (p *process) command() string {
	text, _ := p.read("cmdline")
	if text = strings.ReplaceAll(strings.TrimRight(text, "\x00"), "\x00", " "); text != "" {
		return text
	}
	if text, _ = p.read("comm"); text != "" {
		return "[" + strings.TrimSuffix(text, "\n") + "]"
	}
	return ""
}

func readNames(dir int, name string) (names []string) {
	buf := make([]byte, 8192)
	for {
		n, err := retry(func() (int, error) { return unix.ReadDirent(dir, buf) })
		if err != nil || n <= 0 {
			return names
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// retry calls fn again while a signal interrupts it.
func retry(fn func() (int, error)) (n int, err error) {
	for {
		if n, err = fn(); err != unix.EINTR {
			return n, err
		}
	}
}

// kcmpFile reports whether two descriptors are of the same open file description.
func kcmpFile(pid1, pid2 int, fd1, fd2 int) (bool, error) {
	const file = 0 // KCMP_FILE
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), file, uintptr(fd1), uintptr(fd2), 0)
	if errno != 0 {
		return false, errno
	}
	return r == 0, nil
}
