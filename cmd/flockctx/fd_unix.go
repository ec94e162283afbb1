//go:build unix

package main

import (
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	noTTY     = unix.O_NOCTTY
	directory = unix.O_RDONLY | unix.O_DIRECTORY
	readOnly  = unix.O_RDONLY | unix.O_CLOEXEC // not zero, which stands for the default
)

// inherited returns the descriptor that this process got from its parent, or nil.
// What the runtime has opened for itself is close-on-exec, so it is none of these.
func inherited(fd int, name string) *os.File {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 || openedByRuntime(fd) {
		return nil
	}
	f := os.NewFile(uintptr(fd), name)
	kept = append(kept, f)
	return f
}

// openedByRuntime reports whether a standard descriptor was closed when the program
// started: Go's runtime then opens the null device, for reading and writing. A shell
// does so for one or the other.
func openedByRuntime(fd int) bool {
	if fd > 2 {
		return false
	}
	var st, null unix.Stat_t
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDWR &&
		unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR &&
		unix.Stat(os.DevNull, &null) == nil && st.Rdev == null.Rdev
}

// keepInode makes sure, where it can, that no other file gets the inode number of f
// until release is called, though f is closed. It has no lock.
func keepInode(f *os.File) (release func()) {
	fd := -1
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(n uintptr) {
			fd, _ = unix.Open(descriptors+strconv.Itoa(int(n)), pathOnly|unix.O_CLOEXEC, 0)
		})
	}
	if fd < 0 {
		return func() {}
	}
	return func() { unix.Close(fd) }
}

// kept are files whose descriptors have other owners, or the lock: none of them may
// be closed by the garbage collector.
var kept []*os.File

// setInherited makes commands inherit f's descriptor, at the same number, or not.
func setInherited(f *os.File, on bool) error {
	kept = append(kept, f)
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	flag := unix.FD_CLOEXEC
	if on {
		flag = 0
	}
	if cerr := rc.Control(func(fd uintptr) { _, err = unix.FcntlInt(fd, unix.F_SETFD, flag) }); cerr != nil {
		return cerr
	}
	return err
}

func raise(s syscall.Signal) { unix.Kill(unix.Getpid(), s) }

// status returns the exit status that a shell would have.
func status(p *os.ProcessState) int {
	if p == nil {
		return 1
	}
	ws, ok := p.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return p.ExitCode()
}

// width returns the width of the terminal, or 0 where f is none.
func width(f *os.File) int {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if ws.Col == 0 {
		return 80
	}
	return int(ws.Col)
}

// inBackground reports whether the terminal belongs to another job than this one,
// as that of a shell that shows its prompt. One that is not the controlling terminal
// has no jobs.
func inBackground(f *os.File) bool {
	foreground, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	own, oerr := unix.Getpgid(0)
	return err == nil && oerr == nil && foreground != own
}

func device(dev uint64) (major, minor uint32) { return unix.Major(dev), unix.Minor(dev) }
