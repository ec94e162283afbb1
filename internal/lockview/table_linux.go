package lockview

import (
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A lock is a line of /proc/locks, or one after "lock:" in /proc/PID/fdinfo. See
// proc_locks(5) and lock_get_status in the kernel's fs/locks.c:
//
//	1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF
//	1: -> FLOCK  ADVISORY  WRITE 4712 fe:00:1234 0 EOF
//
// Equal values are locks that the kernel's tables do not tell apart.
type lock struct {
	Claim
	pid  int // 0 or less where the kernel does not say
	node File
}

// An entry is a lock in /proc/locks with its waiters, in their order.
type entry struct {
	lock
	waiters []lock
}

func (e entry) equal(o entry) bool { return e.lock == o.lock && slices.Equal(e.waiters, o.waiters) }

// readTable reads /proc/locks once. Each read(2) hands out a page of whole entries, which
// is of one moment, from where the one before ended by number: where locks come and go
// meanwhile, entries of others can be missing, or be handed out again, once or more. So of
// locks that look alike there are as many as in the page that has most of them.
func readTable() (es []entry, err error) {
	fd, err := open(unix.AT_FDCWD, "/proc/locks", unix.O_RDONLY)
	if err != nil {
		return nil, procError("open", "/proc/locks", err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 1<<16)
	have := make(map[lock]int) // how many of es look like it
	for {
		n, err := retry(func() (int, error) { return unix.Read(fd, buf) })
		switch {
		case err != nil:
			return nil, procError("read", "/proc/locks", err)
		case n == 0:
			return es, nil
		case n < len(buf):
			here := make(map[lock]int)
			for _, e := range parseLocks(string(buf[:n])) {
				if here[e.lock]++; here[e.lock] > have[e.lock] {
					have[e.lock]++
					es = append(es, e)
				}
			}
			continue
		}
		// The kernel hands out whole entries, unless one is larger than the buffer:
		// then it may have ended in the middle of it. Those who wait for flock(2)
		// form a chain in which each is indented by one column more, so that some
		// 300 of them are enough.
		buf = make([]byte, 4*len(buf))
		es, have = nil, make(map[lock]int)
		if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
			return nil, procError("seek", "/proc/locks", err)
		}
	}
}

// parseLocks parses /proc/locks. Waiters of waiters count as those of the lock.
func parseLocks(text string) (es []entry) {
	last := int64(-1) // the number of the last of es
	for line := range strings.Lines(text) {
		l, id, waiting, ok := parseLock(line)
		switch {
		case !ok:
		case !waiting:
			es = append(es, entry{lock: l})
			last = id
		case id == last:
			e := &es[len(es)-1]
			l.node = e.node
			e.waiters = append(e.waiters, l)
		}
	}
	return es
}

// parseLock parses a line. id is the number before the colon; a waiter has that of
// the lock that it waits for. It is not ok for lines of other kinds.
func parseLock(line string) (l lock, id int64, waiting, ok bool) {
	num, rest, _ := strings.Cut(line, ":")
	id, err := strconv.ParseInt(strings.TrimSpace(num), 10, 64)
	f := strings.Fields(rest)
	if len(f) > 0 && f[0] == "->" {
		waiting = true
		f = f[1:]
	}
	if err != nil || len(f) < 7 {
		return l, 0, false, false
	}
	switch f[0] {
	case "FLOCK":
		l.Kind = Flock
	case "OFDLCK":
		l.Kind = OFD
	case "POSIX":
		l.Kind = POSIX
	case "LEASE", "DELEG":
		l.Kind = Lease
	default:
		return l, 0, false, false
	}
	l.Shared = f[2] == "READ"
	if l.pid, err = strconv.Atoi(f[3]); err != nil {
		return l, 0, false, false
	}
	// One who waits for a lease to be broken has "<none>:0" here.
	if l.node, ok = parseNode(f[4]); !ok && !waiting {
		return l, 0, false, false
	}
	if l.Start, err = strconv.ParseInt(f[5], 10, 64); err != nil || l.Start < 0 {
		return l, 0, false, false
	}
	if f[6] != "EOF" {
		end, err := strconv.ParseInt(f[6], 10, 64)
		if err != nil || end < l.Start {
			return l, 0, false, false
		}
		if end < math.MaxInt64 { // that is the end of every file
			l.Length = end - l.Start + 1
		}
	}
	return l, id, waiting, true
}

// parseNode parses major:minor:inode.
func parseNode(text string) (node File, ok bool) {
	major, rest, _ := strings.Cut(text, ":")
	minor, ino, _ := strings.Cut(rest, ":")
	a, err1 := strconv.ParseUint(major, 16, 32)
	b, err2 := strconv.ParseUint(minor, 16, 32)
	n, err3 := strconv.ParseUint(ino, 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return File{}, false
	}
	return File{unix.Mkdev(uint32(a), uint32(b)), n}, true
}
