//go:build linux

package flockctx

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// How Holders finds out. /proc/locks has all locks and who waits for them, but
// names the process that took a lock, which may be gone while a child that
// inherited the descriptor has it; and it names the file by numbers that on btrfs
// fit several files. /proc/PID/fdinfo/FD has the locks of one descriptor, so it
// tells the true holders, and stat(2) of /proc/PID/fd/FD the true file. What the
// table has and no descriptor explains is reported without a PID.

// A survey is what /proc says, of one file or of all.
type survey struct {
	entries []procEntry         // of /proc/locks
	owners  []owner             // descriptors with locks
	openers map[fileID][]opener // descriptors of the files looked for
	command map[int]string      // of the processes of these
	blind   bool                // there are processes that may not be looked at
}

// An opener is a descriptor of another process, or of this one.
type opener struct {
	pid, fd int
	task    int // a thread that has it: pid, unless the main thread has ended
}

type owner struct {
	opener
	file fileID
	path string
	lock procLock
}

// A subject is the file that Holders looks for.
type subject struct {
	path     string
	id       fileID
	dev, ino uint64 // the file's in /proc/locks
}

func sysHolders(path string, all bool) ([]Holder, error) {
	// Numbers of processes are worth nothing in another PID namespace.
	switch self, err := os.Readlink("/proc/self"); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, unsupported("there is no /proc")
	case err != nil:
		return nil, err
	case self != strconv.Itoa(os.Getpid()):
		return nil, unsupported("/proc is that of another PID namespace")
	}
	var of *subject
	if !all {
		var err error
		if of, err = newSubject(path); err != nil {
			return nil, err
		}
	}
	var s *survey
	for range 3 {
		s = &survey{openers: make(map[fileID][]opener), command: make(map[int]string)}
		before, err := readLocks(of)
		if err != nil {
			return nil, err
		}
		s.entries = before
		// The table hides locks that were taken in another PID namespace.
		if of == nil || len(before) > 0 || !initNamespace() {
			if err := s.look(of); err != nil {
				return nil, err
			}
		}
		if s.entries, err = readLocks(of); err != nil {
			return nil, err
		}
		if sameEntries(before, s.entries) {
			break
		}
		// On all files something changes all the time. What no descriptor
		// explains has to have been there before, too.
		if of == nil {
			s.entries = slices.DeleteFunc(s.entries, func(e procEntry) bool {
				is := func(x procEntry) bool { return x.procLock == e.procLock }
				return !slices.ContainsFunc(before, is) &&
					!slices.ContainsFunc(s.owners, func(o owner) bool { return o.lock == e.procLock })
			})
			break
		}
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
	of := &subject{path: path, id: id, dev: id.dev, ino: id.ino}
	self := &process{dir: unix.AT_FDCWD, base: "/proc/self"}
	text, err := self.read("fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return nil, err
	}
	fi := parseFdinfo(text)
	if fi.ino != 0 {
		of.ino = fi.ino
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	if dev, ok := mountDevice(string(mounts), fi.mount); ok {
		of.dev = dev
	}
	return of, nil
}

// initNamespace reports whether this process is in the first PID namespace, which
// sees all processes.
var initNamespace = sync.OnceValue(func() bool {
	ns, _ := os.Readlink("/proc/self/ns/pid")
	return ns == "pid:[4026531836]" // PROC_PID_INIT_INO, a constant of the kernel
})

// look fills in all but the entries.
func (s *survey) look(of *subject) error {
	if of != nil {
		return s.walk(func(p *process, fd string) {
			id, ok := p.identify(fd)
			if !ok || id != of.id {
				return
			}
			s.addOpener(p, fd, id)
			s.addOwner(p, fd, id, of.path)
		})
	}
	// A file that has locks is asked for its identity; the others are not, since
	// they may be on a network file system that does not answer.
	err := s.walk(func(p *process, fd string) { s.addOwner(p, fd, fileID{}, "") })
	if err != nil || !slices.ContainsFunc(s.entries, func(e procEntry) bool { return len(e.waiters) > 0 }) {
		return err
	}
	files := make(map[fileID]bool)
	for _, o := range s.owners {
		files[o.file] = true
	}
	return s.walk(func(p *process, fd string) {
		if id, ok := p.identify(fd); ok && files[id] {
			s.addOpener(p, fd, id)
		}
	})
}

func (s *survey) addOpener(p *process, name string, id fileID) {
	fd, _ := strconv.Atoi(name)
	s.openers[id] = append(s.openers[id], opener{p.pid, fd, p.task})
	s.addCommand(p)
}

func (s *survey) addOwner(p *process, name string, id fileID, path string) {
	text, err := p.read("fdinfo/" + name)
	if err != nil {
		return
	}
	locks := parseFdinfo(text).locks
	if len(locks) == 0 {
		return
	}
	if path == "" {
		var ok bool
		if id, ok = p.identify(name); !ok {
			return
		}
		path = p.link("fd/" + name)
	}
	fd, _ := strconv.Atoi(name)
	for _, l := range locks {
		s.owners = append(s.owners, owner{opener{p.pid, fd, p.task}, id, path, l})
	}
	s.addCommand(p)
}

func (s *survey) addCommand(p *process) {
	if _, ok := s.command[p.pid]; !ok {
		s.command[p.pid] = p.command()
	}
}

// walk calls fn for all descriptors of all processes.
func (s *survey) walk(fn func(p *process, fd string)) error {
	proc, err := retry(func() (int, error) {
		return unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return &fs.PathError{Op: "open", Path: "/proc", Err: err}
	}
	defer unix.Close(proc)
	for _, name := range readNames(proc, ".") {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		// A descriptor of the directory stays that of this process, also when
		// its number goes to another one.
		dir, err := retry(func() (int, error) {
			return unix.Openat(proc, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			continue
		}
		p := &process{pid: pid, task: pid, dir: dir, base: "."}
		fds, err := p.names("fd")
		if len(fds) == 0 && err == nil {
			// Perhaps its main thread has ended, and others go on.
			if tasks, _ := p.names("task"); len(tasks) > 1 {
				for _, task := range tasks {
					p.base = "task/" + task
					if fds, err = p.names("fd"); len(fds) > 0 {
						p.task, _ = strconv.Atoi(task)
						break
					}
				}
			}
		}
		if errors.Is(err, fs.ErrPermission) {
			s.blind = true
		}
		for _, fd := range fds {
			fn(p, fd)
		}
		unix.Close(dir)
	}
	return nil
}

// holders puts the survey together.
func (s *survey) holders(of *subject) (hs []Holder) {
	// One holder for each lock: descriptors of one open file description share it.
	var groups []group
	byLock := make(map[procLock][]int)
	for _, o := range s.owners {
		found := false
		for _, i := range byLock[o.lock] {
			if g := &groups[i]; g.owners[0].file == o.file && s.same(g.owners[0], o) {
				g.owners = append(g.owners, o)
				found = true
				break
			}
		}
		if !found {
			byLock[o.lock] = append(byLock[o.lock], len(groups))
			groups = append(groups, group{owners: []owner{o}})
		}
	}
	places := make(map[fileID]Holder)
	for i := range groups {
		g := &groups[i]
		h := g.holder(s)
		g.pid = h.PID
		hs = append(hs, h)
		places[g.owners[0].file] = place(h.Path, h.Device, h.Inode)
	}
	if of != nil {
		places[of.id] = place(of.path, of.dev, of.ino)
	}

	// On btrfs, an entry may be of a file in another subvolume.
	unsure := func(e procEntry) bool { return of != nil && of.dev != of.id.dev && !s.blind }
	seen := make(map[procLock]int)
	var waiting []Holder
	for _, e := range s.entries {
		n := seen[e.procLock]
		seen[e.procLock]++
		known := byLock[e.procLock]
		if len(known) == 0 && unsure(e) {
			continue
		}
		pid, where := 0, place("", e.dev, e.ino)
		var file fileID
		if of != nil {
			where, file = places[of.id], of.id
		}
		if len(known) > 0 {
			g := &groups[known[min(n, len(known)-1)]]
			pid, file = g.pid, g.owners[0].file
			where = places[file]
		} else {
			h := where.with(e.procLock)
			if e.mechanism == POSIX { // these end with their process
				h.PID = max(e.pid, 0)
				h.Command = s.commandOf(h.PID)
			}
			pid = h.PID
			hs = append(hs, h)
		}
		for _, w := range e.waiters {
			if unsure(e) && w.pid > 0 && !s.hasOpen(w.pid, file) {
				continue
			}
			h := where.with(w)
			h.PID, h.Waiting, h.WaitsFor = max(w.pid, 0), true, pid
			waiting = append(waiting, h)
		}
	}
	waiting = s.identifySleepers(waiting, hs, places)
	for i := range waiting {
		waiting[i].Command = s.commandOf(waiting[i].PID)
	}

	var id *fileID
	if of != nil {
		id = &of.id
	}
	claimed := make([]bool, len(waiting))
	for _, p := range parkedOn(id) {
		h, ok := places[p.id]
		if !ok {
			h = place(p.path, p.id.dev, p.id.ino)
		}
		h.PID, h.Locker, h.Waiting = os.Getpid(), os.Getpid(), true
		h.Mode, h.Mechanism, h.Start, h.Length = p.mode, p.mechanism, p.start, p.length
		if p.kernel {
			i := slices.IndexFunc(waiting[:len(claimed)], func(w Holder) bool {
				return w.PID == h.PID && w.Mode == h.Mode && w.Mechanism == h.Mechanism &&
					w.Path == h.Path && w.Start == h.Start && w.Length == h.Length
			})
			if i >= 0 && !claimed[i] {
				claimed[i] = true
				continue
			}
		}
		h.Command = s.commandOf(h.PID)
		h.WaitsFor = inTheWay(h, hs)
		waiting = append(waiting, h)
	}
	hs = append(hs, waiting...)
	sortHolders(hs)
	return hs
}

// place returns a Holder with only its file set.
func place(path string, dev, ino uint64) Holder { return Holder{Path: path, Device: dev, Inode: ino} }

// with returns h with what the kernel's table says of a lock.
func (h Holder) with(l procLock) Holder {
	h.Mode, h.Mechanism, h.Start, h.Length = l.mode, l.mechanism, l.start, l.length
	h.Locker = max(l.pid, 0)
	return h
}

// A group is the descriptors that have one lock.
type group struct {
	owners []owner
	pid    int
}

func (g *group) holder(s *survey) Holder {
	o := g.owners[0]
	var pids []int
	for _, o := range g.owners {
		pids = append(pids, o.pid)
	}
	slices.Sort(pids)
	pids = slices.Compact(pids)
	i := max(slices.Index(pids, o.lock.pid), 0)
	h := place(o.path, o.lock.dev, o.lock.ino).with(o.lock)
	h.PID = pids[i]
	h.Command = s.command[h.PID]
	if len(pids) > 1 {
		h.Others = slices.Delete(pids, i, i+1)
	}
	return h
}

// same reports whether a and b, which have locks that look alike, have the same one.
func (s *survey) same(a, b owner) bool {
	if a.opener == b.opener || a.lock.mechanism == POSIX && a.lock.pid > 0 {
		return true
	}
	same, err := kcmpFile(a.task, b.task, a.fd, b.fd)
	if err == nil {
		return same
	}
	// Forbidden, or not in this kernel. Then the table may have just the one.
	n := 0
	for _, e := range s.entries {
		if e.procLock == a.lock {
			n++
		}
	}
	return n <= 1
}

func (s *survey) hasOpen(pid int, file fileID) bool {
	return slices.ContainsFunc(s.openers[file], func(o opener) bool { return o.pid == pid })
}

// commandOf returns the command line of a process that exists now.
func (s *survey) commandOf(pid int) string {
	if pid == 0 {
		return ""
	}
	c, ok := s.command[pid]
	if !ok {
		c = (&process{dir: unix.AT_FDCWD, base: "/proc/" + strconv.Itoa(pid)}).command()
		s.command[pid] = c
	}
	return c
}

// inTheWay returns the process of a lock that keeps h waiting, this one first.
func inTheWay(h Holder, hs []Holder) (pid int) {
	for _, x := range hs {
		kin := x.Mechanism == h.Mechanism || x.Mechanism == POSIX && h.Mechanism == OFD
		if !kin || x.Path != h.Path || x.Mode == Shared && h.Mode == Shared ||
			x.Length != 0 && x.Start+x.Length <= h.Start || h.Length != 0 && h.Start+h.Length <= x.Start {
			continue
		}
		if x.PID == h.PID {
			return x.PID
		}
		if pid == 0 {
			pid = x.PID
		}
	}
	return pid
}
