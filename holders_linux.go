//go:build linux

package flockctx

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"github.com/flockctx/flockctx/internal/sys"
	"golang.org/x/sys/unix"
)

// How Holders finds out. /proc/locks has all locks and who waits for them, but
// names the process that took a lock, which may be gone while a child that
// inherited the descriptor has it; and it names the file by numbers that on btrfs
// and overlayfs can fit several files. /proc/PID/fdinfo/FD has the locks of one
// descriptor, so it tells the true holders, and stat(2) of /proc/PID/fd/FD the true
// file. What the table has and no descriptor explains is reported without a PID.

// A subject is the file that Holders looks for.
type subject struct {
	path string
	id   fileID
	node inode
}

// ambiguous reports whether other files may have the same numbers in /proc/locks:
// where stat(2) has to tell files apart by a device that is not the file system's.
func (of *subject) ambiguous() bool { return of.node.dev != of.id.dev }

func sysHolders(path string, all bool) ([]Holder, error) {
	// Numbers of processes are worth nothing in another PID namespace.
	switch self, err := os.Readlink("/proc/self"); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, sys.Unsupported("there is no /proc")
	case err != nil:
		return nil, procError("readlink", "/proc/self", err)
	case self != strconv.Itoa(os.Getpid()):
		return nil, sys.Unsupported("/proc is that of another PID namespace")
	}
	var of *subject
	if !all {
		var err error
		if of, err = newSubject(path); err != nil {
			return nil, err
		}
	}
	var s *survey
	for attempt := 1; ; attempt++ {
		before, err := readLocks(of)
		if err != nil {
			return nil, err
		}
		s = newSurvey(before)
		// The table hides locks that were taken in another PID namespace.
		if of == nil || len(before) > 0 || !initNamespace() {
			if err := s.look(of); err != nil {
				return nil, err
			}
		}
		if s.entries, err = readLocks(of); err != nil {
			return nil, err
		}
		if same := sameEntries(before, s.entries); !s.tidy() && same {
			break
		}
		// On all files something changes all the time.
		if of != nil && attempt < 3 {
			continue
		}
		if err := s.settle(of); err != nil {
			return nil, err
		}
		if of == nil {
			// What no descriptor explains has to have been there before, too.
			s.entries = slices.DeleteFunc(s.entries, func(e procEntry) bool {
				is := func(x procEntry) bool { return x.procLock == e.procLock }
				return !s.explains(e.procLock) && !slices.ContainsFunc(before, is)
			})
		}
		break
	}
	return s.holders(of), nil
}

func newSubject(path string) (*subject, error) {
	// O_PATH needs no permission for the file, breaks no lease, and its close
	// drops no POSIX lock of this process.
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	id := fileID{uint64(st.Dev), uint64(st.Ino)}
	of := &subject{path: path, id: id, node: inode{id.dev, id.ino}}
	self := &process{dir: unix.AT_FDCWD, base: "/proc/self"}
	info := "fdinfo/" + strconv.Itoa(fd)
	text, err := self.read(info)
	if err != nil {
		return nil, procError("read", self.base+"/"+info, err)
	}
	fi := parseFdinfo(text)
	if fi.ino != 0 {
		of.node.ino = fi.ino
	}
	mounts, err := self.read("mountinfo")
	if err != nil {
		return nil, procError("read", self.base+"/mountinfo", err)
	}
	if dev, ok := mountDevice(mounts, fi.mount); ok {
		of.node.dev = dev
	}
	return of, nil
}
