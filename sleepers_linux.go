//go:build linux

package flockctx

import (
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A sleeper is a thread inside a system call that waits for a lock.
type sleeper struct {
	pid           int
	file          fileID
	mechanism     Mechanism
	mode          Mode
	start, length int64
	exact         bool // mode, start and length are known
}

// waitsAs reports whether the thread can be the one that l waits for.
func (sl *sleeper) waitsAs(l procLock) bool {
	return sl.exact && sl.mechanism == l.mechanism && sl.mode == l.mode && sl.start == l.start && sl.length == l.length &&
		(l.pid <= 0 || l.pid == sl.pid)
}

// sleepers returns the threads that wait, where the table does not tell enough: it
// does not name who waits for OFD locks, hides some in a PID namespace, and does not
// tell files with the same numbers apart.
func (s *survey) sleepers() (sleepers []sleeper) {
	unnamed, needed := 0, !initNamespace()
	for _, e := range s.entries {
		for _, w := range e.waiters {
			needed = needed || w.pid <= 0 || len(s.files[e.inode]) > 1
			if w.pid <= 0 && w.mechanism == OFD {
				unnamed++
			}
		}
	}
	if !needed {
		return nil
	}
	// A thread is in the table before it sleeps, and until then its system call is
	// not told.
	for pause := time.Millisecond; ; pause *= 2 {
		sleepers = sleepers[:0]
		found := 0
		for file, os := range s.openers {
			for _, sl := range sleepersOn(file, os) {
				sleepers = append(sleepers, sl)
				if sl.mechanism == OFD {
					found++
				}
			}
		}
		if found >= unnamed || s.blind || pause > 8*time.Millisecond {
			return sleepers
		}
		time.Sleep(pause)
	}
}

// identifySleepers finds the processes of those who wait where the table does not
// name them: for OFD locks, and in a PID namespace where it hides the lock.
func identifySleepers(waiting, holding []sighting, sleepers []sleeper, places map[fileID]Holder, blind bool) []sighting {
	hidden := !initNamespace()
	if !hidden && !slices.ContainsFunc(waiting, func(h sighting) bool { return h.PID == 0 }) {
		return waiting
	}
	take := func(h sighting, fits func(sleeper) bool) (pid int) {
		i := slices.IndexFunc(sleepers, func(sl sleeper) bool {
			return sl.mechanism == h.Mechanism && sl.file == h.file && fits(sl)
		})
		if i < 0 {
			return 0
		}
		pid = sleepers[i].pid
		sleepers = slices.Delete(sleepers, i, i+1)
		return pid
	}
	for _, h := range waiting {
		if h.PID != 0 {
			take(h, func(sl sleeper) bool { return sl.pid == h.PID && sl.mode == h.Mode })
		}
	}
	for i := range waiting {
		h := &waiting[i]
		if h.PID == 0 {
			h.PID = take(*h, func(sl sleeper) bool {
				return sl.exact && sl.mode == h.Mode && sl.start == h.Start && sl.length == h.Length
			})
		}
	}
	for i := range waiting {
		h := &waiting[i]
		if h.PID != 0 {
			continue
		}
		// Those whose memory may not be read: only where it must be this process.
		one := 0
		if !slices.ContainsFunc(sleepers, func(sl sleeper) bool {
			ok := !sl.exact && sl.mechanism == h.Mechanism && sl.file == h.file
			other := ok && one != 0 && one != sl.pid
			if ok {
				one = sl.pid
			}
			return other
		}) && !blind {
			h.PID = take(*h, func(sl sleeper) bool { return !sl.exact })
		}
	}
	if hidden {
		for _, sl := range sleepers {
			if !sl.exact {
				continue
			}
			h := sighting{places[sl.file], sl.file}
			h.PID, h.Waiting = sl.pid, true
			h.Mode, h.Mechanism, h.Start, h.Length = sl.mode, sl.mechanism, sl.start, sl.length
			h.WaitsFor = inTheWay(h, holding)
			waiting = append(waiting, h)
		}
	}
	return waiting
}

// sleepersOn returns the threads that wait for a lock on one of the descriptors.
func sleepersOn(file fileID, openers []opener) (ss []sleeper) {
	fds := make(map[int][]int)
	for _, o := range openers {
		fds[o.pid] = append(fds[o.pid], o.fd)
	}
	for pid, fds := range fds {
		p := &process{pid: pid, dir: unix.AT_FDCWD, base: "/proc/" + strconv.Itoa(pid)}
		tasks, _ := p.names("task")
		for _, task := range tasks {
			text, err := p.read("task/" + task + "/syscall")
			if err != nil {
				continue
			}
			// The number of the call and its arguments; or "running".
			f := strings.Fields(text)
			if len(f) < 4 {
				continue
			}
			var n [4]uint64
			ok := true
			for i := range n {
				if n[i], err = strconv.ParseUint(f[i], 0, 64); err != nil {
					ok = false
				}
			}
			if !ok || !slices.Contains(fds, int(int32(n[1]))) {
				continue
			}
			sl := sleeper{pid: pid, file: file}
			switch call, arg := n[0], int(n[2]); {
			case call == unix.SYS_FLOCK && arg&unix.LOCK_NB == 0 && arg != unix.LOCK_UN:
				sl.mechanism, sl.exact = BSD, true
				if arg == unix.LOCK_SH {
					sl.mode = Shared
				}
			case isFcntl(call) && arg == unix.F_OFD_SETLKW:
				sl.mechanism = OFD
				p.readFlock(n[3], &sl)
			default:
				continue
			}
			ss = append(ss, sl)
		}
	}
	return ss
}

// isFcntl tells fcntl(2), which 32-bit systems have twice.
func isFcntl(call uint64) bool {
	const arm386, mips, ppc = 221, 4220, 204
	return call == unix.SYS_FCNTL || strconv.IntSize == 32 && (call == arm386 || call == mips || call == ppc)
}

// readFlock reads the argument of a blocked fcntl(2) from the process's memory.
func (p *process) readFlock(addr uint64, sl *sleeper) {
	fd, err := p.open("mem", unix.O_RDONLY)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var lk unix.Flock_t
	b := unsafe.Slice((*byte)(unsafe.Pointer(&lk)), unsafe.Sizeof(lk))
	if n, err := unix.Pread(fd, b, int64(addr)); err != nil || n != len(b) || lk.Whence != 0 || lk.Len < 0 {
		return
	}
	sl.start, sl.length, sl.exact = lk.Start, lk.Len, true
	if lk.Type == unix.F_RDLCK {
		sl.mode = Shared
	}
}
