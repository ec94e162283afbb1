//go:build linux

package flockctx

import (
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// A sighting is a Holder whose file is known, or is zero where only its numbers in
// the kernel's table are.
type sighting struct {
	Holder
	file fileID
}

func (h sighting) isOf(id fileID) bool {
	return h.file == id || h.file == fileID{} && h.Device == id.dev && h.Inode == id.ino
}

// place returns a Holder with only its file set.
func place(path string, node inode) Holder {
	return Holder{Path: path, Device: node.dev, Inode: node.ino}
}

// with returns h with what the kernel's table says of a lock.
func (h Holder) with(l procLock) Holder {
	h.Mode, h.Mechanism, h.Start, h.Length = l.mode, l.mechanism, l.start, l.length
	h.Locker = max(l.pid, 0)
	return h
}

// holders puts the survey together.
func (s *survey) holders(of *subject) (hs []Holder) {
	groups := s.groups()
	places := make(map[fileID]Holder)
	var holding, waiting []sighting
	for i := range groups {
		g := &groups[i]
		h := g.holder(s)
		g.pid = h.PID
		holding = append(holding, sighting{h, g.file()})
		places[g.file()] = place(h.Path, inode{h.Device, h.Inode})
	}
	if of != nil {
		places[of.id] = place(of.path, of.node)
	}

	sleepers := s.sleepers()
	for i, found := range s.assign(groups, sleepers, of) {
		e := s.entries[i]
		where, ok := places[found.file]
		if !ok {
			where = place("", e.inode)
		}
		pid := 0
		if found.group >= 0 {
			pid = groups[found.group].pid
		} else {
			h := where.with(e.procLock)
			if e.mechanism == POSIX { // these end with their process
				h.PID = max(e.pid, 0)
				h.Command = s.commandOf(h.PID)
			}
			pid = h.PID
			holding = append(holding, sighting{h, found.file})
		}
		for _, w := range e.waiters {
			h := where.with(w)
			h.PID, h.Waiting, h.WaitsFor = max(w.pid, 0), true, pid
			waiting = append(waiting, sighting{h, found.file})
		}
	}
	waiting = identifySleepers(waiting, holding, sleepers, places, s.blind)
	for i := range waiting {
		waiting[i].Command = s.commandOf(waiting[i].PID)
	}
	waiting = s.addParked(waiting, holding, places, of)
	for _, h := range append(holding, waiting...) {
		if of == nil || h.file == of.id {
			hs = append(hs, h.Holder)
		}
	}
	sortHolders(hs)
	return hs
}

// addParked adds the goroutines of this process that the kernel does not see.
func (s *survey) addParked(waiting, holding []sighting, places map[fileID]Holder, of *subject) []sighting {
	var id *fileID
	if of != nil {
		id = &of.id
	}
	claimed := make([]bool, len(waiting))
	for _, p := range parkedOn(id) {
		where, ok := places[p.id]
		if !ok {
			where = place(p.path, inode{p.id.dev, p.id.ino})
		}
		h := sighting{where, p.id}
		h.PID, h.Locker, h.Waiting = os.Getpid(), os.Getpid(), true
		h.Mode, h.Mechanism, h.Start, h.Length = p.mode, p.mechanism, p.start, p.length
		if p.kernel {
			i := slices.IndexFunc(waiting[:len(claimed)], func(w sighting) bool {
				return w.PID == h.PID && w.Mode == h.Mode && w.Mechanism == h.Mechanism &&
					w.isOf(p.id) && w.Start == h.Start && w.Length == h.Length
			})
			if i >= 0 && !claimed[i] {
				claimed[i] = true
				continue
			}
		}
		h.Command = s.commandOf(h.PID)
		h.WaitsFor = inTheWay(h, holding)
		waiting = append(waiting, h)
	}
	return waiting
}

// An assignment is what is found out of an entry of the table.
type assignment struct {
	group int    // that has the lock, or -1
	file  fileID // or zero
}

// assign finds the groups that have the locks in the table. Each has one of those
// that look alike.
func (s *survey) assign(groups []group, sleepers []sleeper, of *subject) []assignment {
	byLock := make(map[procLock][]int)
	for i, g := range groups {
		l := g.owners[0].lock
		byLock[l] = append(byLock[l], i)
	}
	used := make([]bool, len(groups))
	found := make([]assignment, len(s.entries))
	claim := func(i int) {
		a := &found[i]
		for _, k := range byLock[s.entries[i].procLock] {
			if file := groups[k].file(); !used[k] && (a.file == fileID{} || a.file == file) {
				used[k] = true
				a.group, a.file = k, file
				return
			}
		}
	}
	var rest []int
	for i, e := range s.entries {
		found[i] = assignment{-1, s.waitedFor(e, sleepers)}
		if found[i].file == (fileID{}) {
			rest = append(rest, i)
			continue
		}
		claim(i)
	}
	for _, i := range rest {
		claim(i)
		// What nobody explains as another file's is this one's, rather than nobody's.
		if found[i].file == (fileID{}) && of != nil {
			found[i].file = of.id
		}
	}
	return found
}

// waitedFor returns which of the files with the numbers of e those that wait for it
// have open, or zero where they do not tell.
func (s *survey) waitedFor(e procEntry, sleepers []sleeper) fileID {
	files := s.files[e.inode]
	if len(files) < 2 {
		return fileID{}
	}
	for _, w := range e.waiters {
		var asleep, open []fileID
		for _, f := range files {
			if slices.ContainsFunc(sleepers, func(sl sleeper) bool { return sl.file == f && sl.waitsAs(w) }) {
				asleep = append(asleep, f)
			}
			if w.pid > 0 && s.hasOpen(w.pid, f) {
				open = append(open, f)
			}
		}
		if len(asleep) == 1 {
			return asleep[0]
		}
		if len(open) == 1 {
			return open[0]
		}
	}
	return fileID{}
}

// A group is the descriptors that have one lock.
type group struct {
	owners []owner
	pid    int
}

func (g *group) file() fileID { return g.owners[0].file }

// groups returns one group for each lock: descriptors of one open file description
// share it.
func (s *survey) groups() (groups []group) {
	byLock := make(map[procLock][]int)
	for _, o := range s.owners {
		i := slices.IndexFunc(byLock[o.lock], func(i int) bool {
			return groups[i].file() == o.file && s.same(groups[i].owners[0], o)
		})
		if i >= 0 {
			g := &groups[byLock[o.lock][i]]
			g.owners = append(g.owners, o)
			continue
		}
		byLock[o.lock] = append(byLock[o.lock], len(groups))
		groups = append(groups, group{owners: []owner{o}})
	}
	return groups
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
	h := place(o.path, o.lock.inode).with(o.lock)
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
func inTheWay(h sighting, hs []sighting) (pid int) {
	for _, x := range hs {
		kin := x.Mechanism == h.Mechanism || x.Mechanism == POSIX && h.Mechanism == OFD
		if !kin || !x.isOf(h.file) || x.Mode == Shared && h.Mode == Shared ||
			!overlap(x.Start, x.Length, h.Start, h.Length) {
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
