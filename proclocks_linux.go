//go:build linux

package flockctx

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A procLock is a line of /proc/locks, or one after "lock:" in /proc/PID/fdinfo.
// See proc_locks(5) and lock_get_status in the kernel's fs/locks.c:
//
//	1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF
//	1: -> FLOCK  ADVISORY  WRITE 4712 fe:00:1234 0 EOF
//
// Equal values are locks that the kernel's tables do not tell apart.
type procLock struct {
	mechanism Mechanism
	mode      Mode
	pid       int // 0 or less where the kernel does not say
	inode
	start, length int64
}

// conflicts reports whether two processes cannot have the locks a and b on one file
// at the same time.
func (a procLock) conflicts(b procLock) bool {
	kin := a.mechanism == b.mechanism || a.mechanism == POSIX && b.mechanism == OFD || a.mechanism == OFD && b.mechanism == POSIX
	return kin && a.mechanism != Lease && (a.mode == Exclusive || b.mode == Exclusive) &&
		overlap(a.start, a.length, b.start, b.length)
}

// overlap reports whether two ranges have a byte in common.
func overlap(start1, length1, start2, length2 int64) bool {
	return (length1 == 0 || start2-start1 < length1) && (length2 == 0 || start1-start2 < length2)
}

// A procEntry is a lock in /proc/locks with its waiters, in their order.
type procEntry struct {
	procLock
	waiters []procLock
}

// parseLock parses a line. id is the number before the colon; a waiter has that of
// the lock that it waits for. It is not ok for lines of other kinds.
func parseLock(line string) (l procLock, id int64, waiting, ok bool) {
	num, rest, found := strings.Cut(line, ":")
	id, err := strconv.ParseInt(strings.TrimSpace(num), 10, 64)
	if !found || err != nil {
		return l, 0, false, false
	}
	f := strings.Fields(rest)
	if len(f) > 0 && f[0] == "->" {
		waiting = true
		f = f[1:]
	}
	if len(f) < 7 {
		return l, 0, false, false
	}
	switch f[0] {
	case "FLOCK":
		l.mechanism = BSD
	case "OFDLCK":
		l.mechanism = OFD
	case "POSIX":
		l.mechanism = POSIX
	case "LEASE", "DELEG":
		l.mechanism = Lease
	default:
		return l, 0, false, false
	}
	if f[2] == "READ" {
		l.mode = Shared
	}
	if l.pid, err = strconv.Atoi(f[3]); err != nil {
		return l, 0, false, false
	}
	// One who waits for a lease to be broken has "<none>:0" here.
	if dev := strings.Split(f[4], ":"); len(dev) == 3 {
		major, err1 := strconv.ParseUint(dev[0], 16, 32)
		minor, err2 := strconv.ParseUint(dev[1], 16, 32)
		ino, err3 := strconv.ParseUint(dev[2], 10, 64)
		if err1 != nil || err2 != nil || err3 != nil {
			return l, 0, false, false
		}
		l.inode = inode{unix.Mkdev(uint32(major), uint32(minor)), ino}
	} else if !waiting {
		return l, 0, false, false
	}
	if l.start, err = strconv.ParseInt(f[5], 10, 64); err != nil || l.start < 0 {
		return l, 0, false, false
	}
	if f[6] != "EOF" {
		end, err := strconv.ParseInt(f[6], 10, 64)
		if err != nil || end < l.start {
			return l, 0, false, false
		}
		l.length = end - l.start + 1
	}
	return l, id, waiting, true
}

// parseLocks parses /proc/locks. Waiters of waiters count as those of the lock.
func parseLocks(text string) (es []procEntry) {
	last := int64(-1) // the number of the last of es
	for line := range strings.Lines(text) {
		l, id, waiting, ok := parseLock(line)
		switch {
		case !ok:
		case !waiting:
			es = append(es, procEntry{procLock: l})
			last = id
		case id == last:
			e := &es[len(es)-1]
			l.inode = e.inode
			e.waiters = append(e.waiters, l)
		}
	}
	return es
}

// fdinfo is what this package reads from /proc/PID/fdinfo/FD.
type fdinfo struct {
	mount int
	ino   uint64 // 0 before Linux 5.14
	locks []procLock
}

func parseFdinfo(text string) (fi fdinfo) {
	for line := range strings.Lines(text) {
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
