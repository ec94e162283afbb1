//go:build amd64 || arm64 || riscv64

package sys

import (
	"io/fs"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxStackPath is the size of the buffer, on the stack, in which a path gets the
// NUL at its end that the kernel wants. Allocating it made up 3 % of an uncontended
// Lock.
const maxStackPath = 128

// Open opens path with the flag and permissions of os.OpenFile. The error is the
// system's, or ErrBusy where a lease of another process has to be broken first. What
// path names is refused unless it is a file or a directory.
func Open(path string, flag int, perm fs.FileMode) (Descriptor, error) {
	var buf [maxStackPath]byte
	if len(path) >= len(buf) || strings.IndexByte(path, 0) >= 0 {
		return openAny(path, flag, perm)
	}
	copy(buf[:], path)
	dir := unix.AT_FDCWD
	fd, _, errno := syscall.Syscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(&buf[0])),
		uintptr(flag|openFlags|unix.O_LARGEFILE), uintptr(openMode(perm)), 0, 0)
	if errno == unix.ENOENT && flag&unix.O_CREAT == 0 {
		return Descriptor{}, errno
	}
	if errno != 0 {
		return openAny(path, flag, perm) // which knows what it means
	}
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || unix.Major(st.Dev) == 0 {
		return describe(fd)
	}
	return Descriptor{fd: fd, ID: FileID{Dev: st.Dev, Ino: st.Ino}, open: true}, nil
}

// Verify returns nil if path names the open file, ErrStale if it names another one or
// none, and another error where that cannot be told.
func (d *Descriptor) Verify(path string) error {
	var buf [maxStackPath]byte
	if d.kind >= fuse || len(path) >= len(buf) || strings.IndexByte(path, 0) >= 0 {
		return d.verify(path)
	}
	copy(buf[:], path)
	dir := unix.AT_FDCWD
	var st unix.Stat_t
	_, _, errno := syscall.Syscall6(unix.SYS_NEWFSTATAT, uintptr(dir), uintptr(unsafe.Pointer(&buf[0])),
		uintptr(unsafe.Pointer(&st)), 0, 0, 0)
	if errno != 0 || st.Dev != d.ID.Dev || st.Ino != d.ID.Ino {
		return d.verify(path)
	}
	return nil
}

// fstat and flock are those of package unix, made to be inlined.
func fstat(fd uintptr, st *unix.Stat_t) error {
	_, _, errno := syscall.Syscall(unix.SYS_FSTAT, fd, uintptr(unsafe.Pointer(st)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func flock(fd uintptr, how int) error {
	_, _, errno := syscall.Syscall(unix.SYS_FLOCK, fd, uintptr(how), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
