//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package flockctx

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

// openFlags are given to every open(2). O_NONBLOCK has a FIFO, a device or a lease
// not hang it; for what is accepted, files and directories, it means nothing later.
const openFlags = unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY

// sysOpen opens path with the flag and permissions of os.OpenFile. The error is the
// system's, or errBusy where a lease has to be broken first.
func sysOpen(path string, flag int, perm fs.FileMode) (descriptor, error) {
	for {
		fd, err := unix.Open(path, flag|openFlags, openMode(perm))
		switch err {
		case nil:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return descriptor{}, errBusy
		case unix.ENXIO, unix.EOPNOTSUPP: // a socket, or a FIFO for writing
			if _, serr := sysIdentify(0, path); errors.Is(serr, errors.ErrUnsupported) {
				return descriptor{}, serr
			}
			fallthrough
		default:
			return descriptor{}, err
		}
		return describe(uintptr(fd))
	}
}

// describe makes a descriptor of fd, or closes it.
func describe(fd uintptr) (descriptor, error) {
	var st unix.Stat_t
	var id fileID
	err := stat(fd, "", &st)
	if err == nil {
		id, err = identity(&st)
	}
	if err != nil {
		sysClose(fd)
		return descriptor{}, err
	}
	return descriptor{fd: fd, id: id}, nil
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

// sysClose closes fd, also where a signal interrupts that.
func sysClose(fd uintptr) error {
	if err := syscall.Close(int(fd)); err != syscall.EINTR {
		return err
	}
	return nil
}

// sysFile returns the os.File that owns fd from now on. Without O_NONBLOCK, with
// which os.NewFile would ask the file system, such as a FUSE daemon, about polling.
func sysFile(fd uintptr, path string) *os.File {
	unix.SetNonblock(int(fd), false)
	return os.NewFile(fd, path)
}

// sysIdentify identifies the file that path names or, where path is empty, the open
// file fd. What path names is refused unless it is a file or a directory; what the
// caller has opened is not.
func sysIdentify(fd uintptr, path string) (fileID, error) {
	var st unix.Stat_t
	if err := stat(fd, path, &st); err != nil {
		return fileID{}, err
	}
	if path == "" {
		return fileID{uint64(st.Dev), uint64(st.Ino)}, nil
	}
	return identity(&st)
}

func stat(fd uintptr, path string, st *unix.Stat_t) error {
	for {
		var err error
		if path == "" {
			err = fstat(fd, st)
		} else {
			err = unix.Stat(path, st)
		}
		if err != unix.EINTR {
			return err
		}
	}
}

func identity(st *unix.Stat_t) (fileID, error) {
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return fileID{}, unsupported("is a %s; only files and directories can be locked", kindName(uint32(kind)))
	}
	return fileID{uint64(st.Dev), uint64(st.Ino)}, nil
}

func kindName(kind uint32) string {
	switch kind {
	case unix.S_IFIFO:
		return "named pipe"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "device"
	}
	return "special file"
}

// sysLock does r on fd.
func sysLock(fd uintptr, r request) error {
	var err error
	for range maxInterrupts {
		if r.mechanism == OFD {
			err = ofdLock(fd, r)
		} else {
			err = flock(fd, flockOperation(r))
		}
		if err == nil {
			return nil
		}
		if err != unix.EINTR && err != restart {
			break
		}
		if r.op == opBlock {
			return errInterrupted
		}
	}
	switch err {
	case unix.EWOULDBLOCK:
		return errBusy
	case unix.EBADF:
		return &annotated{"the lock needs the file open for " + access(r.mode), err}
	case unix.ENOSYS, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOTTY:
		name, _ := fileSystem(fd)
		return &unsupportedError{name + " cannot lock (" + r.mechanism.String() + ")", err}
	case unix.ENOLCK:
		name, _ := fileSystem(fd)
		return &annotated{name + " has no lock to give: its lock service is unreachable or out of locks", err}
	}
	return err
}

// restart is ERESTARTSYS, which some FUSE daemons hand out.
const restart = syscall.Errno(512)

// maxInterrupts is how often a call that does not wait is made again because a signal
// interrupted it. (One of a FUSE daemon that has nothing else to say is an error.)
const maxInterrupts = 1000

// flockOperation returns the operation argument of flock(2).
func flockOperation(r request) int {
	how := unix.LOCK_EX
	switch {
	case r.op == opUnlock:
		return unix.LOCK_UN
	case r.mode == Shared:
		how = unix.LOCK_SH
	}
	if r.op == opTry {
		how |= unix.LOCK_NB
	}
	return how
}

func access(m Mode) string {
	if m == Exclusive {
		return "writing"
	}
	return "reading"
}

// annotated is a system's error with what it means here.
type annotated struct {
	text string
	err  error
}

func (e *annotated) Error() string { return e.text + ": " + e.err.Error() }
func (e *annotated) Unwrap() error { return e.err }
