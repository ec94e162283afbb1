package lockview

import (
	"cmp"
	"math"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Of returns the locks on the file that path names, and who waits for one, holders
// first. own is called with the file's identity, and returns the goroutines of this
// process that wait for it.
//
// An error does not name path. Where there is no /proc of this PID namespace, or it
// lacks the table of locks, it matches [errors.ErrUnsupported].
func Of(path string, own func(*File) []Waiter) ([]Lock, error) {
	if err := checkProc(); err != nil {
		return nil, err
	}
	of, err := newSubject(path)
	if err != nil {
		return nil, err
	}
	return view(of, own)
}

// All returns what Of returns, for all locks on all files, sorted by path. own is
// called with nil, and returns the goroutines that wait for any file.
func All(own func(*File) []Waiter) ([]Lock, error) {
	if err := checkProc(); err != nil {
		return nil, err
	}
	return view(nil, own)
}

func view(of *subject, own func(*File) []Waiter) ([]Lock, error) {
	s := &survey{of: of, files: make(map[File]*file), command: make(map[int]string)}
	if err := s.take(); err != nil {
		return nil, err
	}
	var holding, waiting []Lock
	for node, f := range s.files {
		holding, waiting = s.append(holding, waiting, node, f)
	}
	var waiters []Waiter
	if of != nil {
		elsewhere := func(l Lock) bool { return l.File != of.id }
		holding, waiting = slices.DeleteFunc(holding, elsewhere), slices.DeleteFunc(waiting, elsewhere)
		waiters = own(&of.id)
	} else {
		waiters = own(nil)
	}
	locks := append(compatible(holding), waiting...)
	locks = add(locks, waiters, func(w Waiter) Lock {
		if of != nil {
			return Lock{Path: of.path, Node: of.node}
		}
		return Lock{Path: w.Path, Node: w.File}
	}, s.commandOf)
	order(locks)
	return locks, s.err
}

// append appends the locks on f, the more certain first, and those who wait for them.
func (s *survey) append(holding, waiting []Lock, node File, f *file) (_, _ []Lock) {
	groups := make(map[lock][]Lock)
	for _, g := range f.groups {
		groups[g[0].lock] = append(groups[g[0].lock], s.holder(g))
	}
	var bare []Lock
	for _, e := range f.entries {
		var h Lock
		if alike := groups[e.lock]; len(alike) > 0 {
			h, groups[e.lock] = alike[0], alike[1:]
			holding = append(holding, h)
		} else {
			h = e.lock.with(Lock{Node: node, File: node})
			if s.of != nil { // what nobody explains as another file's is this one's
				h.File, h.Path = s.of.id, s.of.path
			}
			if e.Kind == POSIX { // these end with their process
				h.PID = max(e.pid, 0)
				h.Command = s.commandOf(h.PID)
			}
			bare = append(bare, h)
		}
		for _, w := range e.waiters {
			l := w.with(Lock{Path: h.Path, Node: node, File: h.File, Waiting: true, WaitsFor: h.PID})
			l.PID = l.Locker
			l.Command = s.commandOf(l.PID)
			waiting = append(waiting, l)
		}
	}
	for _, hidden := range groups {
		holding = append(holding, hidden...)
	}
	return append(holding, bare...), waiting
}

// compatible removes the holders that one before them on the same file excludes.
func compatible(holding []Lock) []Lock {
	byFile := make(map[File][]Lock)
	for _, h := range holding {
		byFile[h.File] = append(byFile[h.File], h)
	}
	var kept []Lock
	for _, hs := range byFile {
		if !exclusion(hs) {
			kept = append(kept, hs...)
			continue
		}
		var some []Lock
		for _, h := range hs {
			if !slices.ContainsFunc(some, func(o Lock) bool { return o.conflicts(h.Claim) }) {
				some = append(some, h)
			}
		}
		kept = append(kept, some...)
	}
	return kept
}

// exclusion reports whether two locks on one file exclude each other.
func exclusion(locks []Lock) bool {
	locks = slices.Clone(locks)
	slices.SortFunc(locks, func(a, b Lock) int { return cmp.Compare(a.Start, b.Start) })
	// Where the locks so far end, those of flock(2) and those of fcntl(2), exclusive
	// ones and all.
	var exclusive, all [2]int64
	for _, l := range locks {
		if l.Kind == Lease {
			continue
		}
		k, end := min(l.Kind, OFD), int64(math.MaxInt64)
		if l.Length > 0 {
			end = l.Start + l.Length
		}
		if l.Start < exclusive[k] || !l.Shared && l.Start < all[k] {
			return true
		}
		if all[k] = max(all[k], end); !l.Shared {
			exclusive[k] = max(exclusive[k], end)
		}
	}
	return false
}

// with returns to with what the kernel says of l.
func (l lock) with(to Lock) Lock {
	to.Claim, to.Locker = l.Claim, max(l.pid, 0)
	return to
}

func (s *survey) holder(g group) Lock {
	o := g[0]
	var pids []int
	for _, o := range g {
		pids = append(pids, o.pid)
	}
	slices.Sort(pids)
	pids = slices.Compact(pids)
	i := max(slices.Index(pids, o.lock.pid), 0)
	h := o.lock.with(Lock{PID: pids[i], Command: s.command[pids[i]], Path: o.path, Node: o.lock.node, File: o.file})
	if len(pids) > 1 {
		h.Others = slices.Delete(pids, i, i+1)
	}
	return h
}

// commandOf returns the command line of a process that exists now.
func (s *survey) commandOf(pid int) string {
	c, ok := s.command[pid]
	if !ok && pid > 0 {
		if err := visit(pid, func(p *process) { c = p.command() }); err != nil {
			s.err = err
		}
		s.command[pid] = c
	}
	return c
}

// A subject is the file that Of is asked about.
type subject struct {
	path string
	id   File
	node File // its numbers in the table
}

// ambiguous reports whether other files may have the same numbers in the table:
// where stat(2) has to tell files apart by a device that is not the file system's.
func (of *subject) ambiguous() bool { return of.node.Dev != of.id.Dev }

func newSubject(path string) (*subject, error) {
	// O_PATH needs no permission for the file, breaks no lease, and its close
	// drops no POSIX lock of this process.
	fd, err := open(unix.AT_FDCWD, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	id := File{uint64(st.Dev), uint64(st.Ino)}
	of := &subject{path: path, id: id, node: id}
	err = visit(os.Getpid(), func(self *process) {
		info := self.fdinfo(strconv.Itoa(fd))
		if info.ino != 0 {
			of.node.Ino = info.ino
		}
		if dev, ok := mountDevice(self.read("mountinfo"), info.mount); ok {
			of.node.Dev = dev
		}
	})
	return of, err
}
