//go:build amd64 || arm64 || riscv64

package flockctx

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

// openPath is sysOpen.
func openPath(path string, flag int, perm fs.FileMode) (descriptor, error) {
	var buf [maxStackPath]byte
	if len(path) >= len(buf) || strings.IndexByte(path, 0) >= 0 {
		return sysOpen(path, flag, perm)
	}
	copy(buf[:], path)
	dir := unix.AT_FDCWD
	fd, _, errno := syscall.Syscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(&buf[0])),
		uintptr(flag|openFlags|unix.O_LARGEFILE), uintptr(openMode(perm)), 0, 0)
	if errno == unix.ENOENT {
		return descriptor{}, errno
	}
	if errno != 0 {
		return sysOpen(path, flag, perm) // which knows what it means
	}
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return describe(fd)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return describe(fd)
	}
	return descriptor{fd: fd, id: fileID{st.Dev, st.Ino}}, nil
}

// identifyPath is sysIdentify for a path.
func identifyPath(path string) (fileID, error) {
	var buf [maxStackPath]byte
	if len(path) >= len(buf) || strings.IndexByte(path, 0) >= 0 {
		return sysIdentify(0, path)
	}
	copy(buf[:], path)
	dir := unix.AT_FDCWD
	var st unix.Stat_t
	_, _, errno := syscall.Syscall6(unix.SYS_NEWFSTATAT, uintptr(dir), uintptr(unsafe.Pointer(&buf[0])),
		uintptr(unsafe.Pointer(&st)), 0, 0, 0)
	if errno != 0 {
		return sysIdentify(0, path)
	}
	return identity(&st)
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
