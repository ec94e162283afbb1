//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package sys

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// writeRefusals are the errors, besides those of permission, of a file that can
// perhaps be opened for reading.
var writeRefusals = []error{unix.EROFS, unix.ETXTBSY, unix.EISDIR}

// noFile are the errors, besides that of a missing name, that say that a path names no
// file; forgotten those of a file that the server knows no more.
var (
	noFile    = []error{unix.ENOTDIR}
	forgotten = []error{unix.ESTALE}
)

// openFlags are given to every open(2). O_NONBLOCK has a FIFO, a device or a lease
// not hang it; for what is accepted, files and directories, it means nothing later.
const openFlags = unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY

// rootFlags are what os.Root does not have of them, and errAgain is what comes of them
// where a lease has to be broken.
const (
	rootFlags = unix.O_NONBLOCK | unix.O_NOCTTY
	errAgain  = unix.EAGAIN
)

// openAny opens path with the flag and permissions of os.OpenFile. The error is the
// system's, or ErrBusy where a lease has to be broken first.
func openAny(path string, flag int, perm fs.FileMode) (Descriptor, error) {
	for tries := 1; ; tries++ {
		fd, err := unix.Open(path, flag|openFlags, openMode(perm))
		if err != nil {
			var again bool
			if again, err = reopens(path, flag, err); again && tries < 5 {
				continue
			}
		}
		switch err {
		case nil:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return Descriptor{}, ErrBusy
		case unix.ENXIO, unix.EOPNOTSUPP: // a socket, or a FIFO for writing
			if _, serr := identifyPath(path, false); errors.Is(serr, errors.ErrUnsupported) {
				return Descriptor{}, serr
			}
			fallthrough
		default:
			return Descriptor{}, err
		}
		return describe(uintptr(fd))
	}
}

// Create creates the file at path, which must not exist, with the permissions perm
// exactly. Where the system can do that, nobody sees it without them.
func Create(path string, flag int, perm fs.FileMode) (Descriptor, error) {
	if fd, err := createWhole(path, flag, openMode(perm)); err == nil {
		return describe(fd)
	} else if err == unix.EEXIST {
		return Descriptor{}, err
	}
	d, err := openAny(path, flag|unix.O_CREAT|unix.O_EXCL, perm)
	if err != nil {
		return d, err
	}
	if err := retry(func() error { return unix.Fchmod(int(d.fd), openMode(perm)) }); err != nil {
		unix.Unlink(path)
		Close(d.fd)
		return Descriptor{}, err
	}
	return d, nil
}

// describe makes a Descriptor of fd, or closes it.
func describe(fd uintptr) (d Descriptor, err error) {
	d = Descriptor{fd: fd, open: true}
	var st unix.Stat_t
	if err = retry(func() error { return fstat(fd, &st) }); err == nil {
		err = lockable(&st)
	}
	if err == nil {
		d.ID, d.kind = identity(fd, &st)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = d.kind.refusesDirectories()
		}
	}
	if err != nil {
		Close(fd)
		return Descriptor{}, err
	}
	return d, nil
}

// identity returns what tells the open file apart.
func identity(fd uintptr, st *unix.Stat_t) (FileID, kind) {
	id := FileID{Dev: uint64(st.Dev), Ino: uint64(st.Ino)}
	k := kindOf(fd, id.Dev)
	if k.hasHandles() {
		id.Handle = handleOf(int(fd), "", atEmptyPath)
	}
	return id, k
}

func openMode(perm fs.FileMode) uint32 {
	mode := uint32(perm.Perm())
	if perm&fs.ModeSetuid != 0 {
		mode |= unix.S_ISUID
	}
	if perm&fs.ModeSetgid != 0 {
		mode |= unix.S_ISGID
	}
	if perm&fs.ModeSticky != 0 {
		mode |= unix.S_ISVTX
	}
	return mode
}

// Close closes a bare descriptor, also where a signal interrupts that.
func Close(fd uintptr) error {
	if err := syscall.Close(int(fd)); err != syscall.EINTR {
		return err
	}
	return nil
}

// newFile returns the os.File that owns fd from now on. Without O_NONBLOCK, with
// which os.NewFile would ask the file system, such as a FUSE daemon, about polling.
func newFile(fd uintptr, path string) *os.File {
	unix.SetNonblock(int(fd), false)
	return os.NewFile(fd, path)
}

// identifyOpen identifies the open file fd, whatever kind of file that is: the caller
// has opened it.
func identifyOpen(fd uintptr) (id FileID, k kind, err error) {
	var st unix.Stat_t
	if err = retry(func() error { return fstat(fd, &st) }); err == nil {
		id, k = identity(fd, &st)
	}
	return id, k, err
}

// identifyPath identifies the file that path names. What is neither a file nor a
// directory is refused.
func identifyPath(path string, handle bool) (id FileID, err error) {
	var st unix.Stat_t
	if err = retry(func() error { return unix.Stat(path, &st) }); err == nil {
		err = lockable(&st)
	}
	if err != nil {
		return FileID{}, err
	}
	id = FileID{Dev: uint64(st.Dev), Ino: uint64(st.Ino)}
	if handle {
		id.Handle = handleOf(unix.AT_FDCWD, path, atFollow)
	}
	return id, nil
}

// retry calls fn until no signal interrupts it.
func retry(fn func() error) error {
	for {
		if err := fn(); err != unix.EINTR {
			return err
		}
	}
}

func lockable(st *unix.Stat_t) error {
	switch uint32(st.Mode & unix.S_IFMT) {
	case unix.S_IFREG, unix.S_IFDIR:
		return nil
	case unix.S_IFIFO:
		return Unsupported("is a named pipe; only files and directories can be locked")
	case unix.S_IFSOCK:
		return Unsupported("is a socket; only files and directories can be locked")
	case unix.S_IFCHR, unix.S_IFBLK:
		return Unsupported("is a device; only files and directories can be locked")
	}
	return Unsupported("is a special file; only files and directories can be locked")
}
