//go:build linux

package flockctx

import (
	"errors"
	"io"
	"io/fs"
	"slices"

	"github.com/flockctx/flockctx/internal/sys"
	"golang.org/x/sys/unix"
)

// readLocks reads /proc/locks, and returns what concerns of. A table that changes
// while it is read can lack entries: so of each file that is believed which two
// readings agree on.
func readLocks(of *subject) (es []procEntry, err error) {
	read := func() (map[inode][]procEntry, error) {
		table, err := readTable()
		if err != nil {
			return nil, err
		}
		files := make(map[inode][]procEntry)
		for _, e := range table {
			if of == nil || e.inode == of.node {
				files[e.inode] = append(files[e.inode], e)
			}
		}
		return files, nil
	}
	last, err := read()
	if err != nil {
		return nil, err
	}
	settled := make(map[inode]bool)
	for range 5 {
		now, err := read()
		if err != nil {
			return nil, err
		}
		again := false
		for f := range now {
			if _, ok := last[f]; !ok {
				last[f] = nil
			}
		}
		for f, was := range last {
			switch {
			case settled[f]:
			case sameEntries(was, now[f]):
				settled[f] = true
			default:
				last[f] = now[f]
				again = true
			}
		}
		if !again {
			break
		}
	}
	for _, e := range last {
		es = append(es, e...)
	}
	return es, nil
}

// readTable reads /proc/locks once.
func readTable() (es []procEntry, err error) {
	fd, err := retry(func() (int, error) { return unix.Open("/proc/locks", unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, procError("open", "/proc/locks", err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 1<<16)
	for {
		n, err := retry(func() (int, error) { return unix.Read(fd, buf) })
		switch {
		case err != nil:
			return nil, procError("read", "/proc/locks", err)
		case n == 0:
			return es, nil
		case n < len(buf):
			es = appendEntries(es, parseLocks(string(buf[:n])))
			continue
		}
		// The kernel hands out whole entries, unless one is larger than the buffer:
		// then it may have ended in the middle of it. Those who wait for flock(2)
		// form a chain in which each is indented by one column more, so that some
		// 300 of them are enough.
		buf = make([]byte, 4*len(buf))
		es = nil
		if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
			return nil, procError("seek", "/proc/locks", err)
		}
	}
}

// procError is an error of a file below /proc. That one does not exist says nothing
// of the file whose holders are looked for.
func procError(op, path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return sys.Unsupported("there is no %s", path)
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// appendEntries appends what one more read(2) returned. Each hands out a page of
// whole entries, from where the one before ended by number. Locks that came in
// between are put in front, and so the last entries are handed out again.
func appendEntries(es, more []procEntry) []procEntry {
	for m := min(len(es), len(more)); m > 0; m-- {
		if slices.EqualFunc(es[len(es)-m:], more[:m], sameEntry) {
			return append(es, more[m:]...)
		}
	}
	return append(es, more...)
}

func sameEntry(a, b procEntry) bool {
	return a.procLock == b.procLock && slices.Equal(a.waiters, b.waiters)
}

// sameEntries compares the entries of one file, whose order in the table means
// nothing.
func sameEntries(a, b []procEntry) bool {
	if len(a) != len(b) {
		return false
	}
	rest := slices.Clone(b)
	for _, e := range a {
		i := slices.IndexFunc(rest, func(x procEntry) bool { return sameEntry(e, x) })
		if i < 0 {
			return false
		}
		rest = slices.Delete(rest, i, i+1)
	}
	return true
}
