package lockview

import (
	"cmp"
	"maps"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// A survey is what /proc says of the locks on one file, or on all.
type survey struct {
	of      *subject       // or nil
	files   map[File]*file // by their numbers in the table
	command map[int]string
	err     error // of a look for the command alone
}

// A file is what is known of the file, or on btrfs and overlayfs the files, that the
// table gives these numbers.
type file struct {
	entries  []entry      // of the last table that was read
	owners   []owner      // descriptors with a lock, as they were seen
	groups   []group      // owners, put together
	suspects map[int]bool // processes that may have a lock
	settled  bool
}

// An owner is a descriptor with a lock.
type owner struct {
	*descriptor
	lock lock
}

type descriptor struct {
	pid, fd int
	file    File
	path    string
}

// A group is the owners of one lock: descriptors of one open file description.
type group []owner

// rounds is how often what has changed is looked at again. On all files something
// changes all the time, and each round reads a long table.
const rounds, roundsOfAll = 10, 3

// take reads the table and looks at the descriptors until both agree.
func (s *survey) take() error {
	if _, err := s.readTable(); err != nil {
		return err
	}
	// That the table has nothing of the file says little: what one reading of it
	// lacks can be there all the time.
	all, err := processes()
	if err != nil {
		return err
	}
	if err := s.look(all); err != nil {
		return err
	}
	for round := 1; ; round++ {
		restless, err := s.readTable()
		if err != nil || len(restless) == 0 {
			return err
		}
		if round == rounds || s.of == nil && round == roundsOfAll {
			for node, f := range restless {
				if s.of == nil && len(f.groups) == 0 {
					delete(s.files, node)
				}
			}
			return nil
		}
		suspects := make(map[int]bool)
		for _, f := range restless {
			f.owners = nil
			for _, e := range f.entries {
				suspects[e.pid] = true
				for _, w := range e.waiters { // perhaps the next to have it
					suspects[w.pid] = true
				}
			}
			for pid := range f.suspects {
				suspects[pid] = true
			}
		}
		var pids []int
		for pid := range suspects {
			if pid > 0 {
				pids = append(pids, pid)
			}
		}
		if err := s.look(pids); err != nil {
			return err
		}
	}
}

// readTable reads the table, and returns the files that it has something new of, or
// whose owners it contradicts.
func (s *survey) readTable() (restless map[File]*file, err error) {
	table, err := readTable()
	if err != nil {
		return nil, err
	}
	entries := make(map[File][]entry)
	for _, e := range table {
		if s.of == nil || e.node == s.of.node {
			entries[e.node] = append(entries[e.node], e)
			s.file(e.node)
		}
	}
	restless = make(map[File]*file)
	for node, f := range s.files {
		if f.settled {
			continue
		}
		same := slices.EqualFunc(f.entries, entries[node], entry.equal)
		f.entries = entries[node]
		f.groups = f.group()
		if f.settled = same && f.explained(); !f.settled {
			restless[node] = f
		}
	}
	return restless, nil
}

func (s *survey) file(node File) *file {
	f := s.files[node]
	if f == nil {
		f = &file{suspects: make(map[int]bool)}
		s.files[node] = f
	}
	return f
}

// look looks at all descriptors of these processes.
func (s *survey) look(pids []int) error {
	for _, pid := range pids {
		err := visit(pid, func(p *process) {
			for _, fd := range p.descriptors() {
				s.examine(p, fd)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// examine notes the locks of a descriptor.
func (s *survey) examine(p *process, name string) {
	info := p.fdinfo(name)
	if s.of != nil && info.ino == s.of.node.Ino {
		s.file(s.of.node).suspects[p.pid] = true
	}
	var d *descriptor
	for _, l := range info.locks {
		if s.of != nil && l.node != s.of.node {
			continue
		}
		f := s.file(l.node)
		if f.settled {
			continue
		}
		if d == nil {
			d = s.describe(p, name, l.node)
		}
		f.owners = append(f.owners, owner{d, l})
		f.suspects[p.pid] = true
	}
}

func (s *survey) describe(p *process, name string, node File) *descriptor {
	fd, _ := strconv.Atoi(name)
	d := &descriptor{pid: p.pid, fd: fd, file: node}
	if s.of != nil {
		d.file, d.path = s.of.id, s.of.path
	} else {
		d.path = p.link("fd/" + name)
	}
	if s.of == nil || s.of.ambiguous() {
		if id, ok := p.identify(name); ok {
			d.file = id
		}
	}
	if _, ok := s.command[p.pid]; !ok {
		s.command[p.pid] = p.command()
	}
	return d
}

// group puts the owners together that share a lock, in the order in which they were
// seen.
func (f *file) group() (groups []group) {
	entries := f.count()
	alike := make(map[lock][]owner)
	var order []lock
	for _, o := range f.owners {
		if alike[o.lock] == nil {
			order = append(order, o.lock)
		}
		alike[o.lock] = append(alike[o.lock], o)
	}
	for _, l := range order {
		os := alike[l]
		compare := func(a, b owner) int {
			c := cmp.Or(cmp.Compare(a.file.Dev, b.file.Dev), cmp.Compare(a.file.Ino, b.file.Ino))
			if c != 0 || a == b {
				return c
			}
			c, err := kcmp(a.pid, a.fd, b.pid, b.fd)
			switch {
			case err == nil:
				return c
			case (err == unix.EPERM || err == unix.ENOSYS) && entries[l] <= 1:
				return 0 // forbidden, or not in this kernel; but the table has just the one
			}
			return cmp.Or(cmp.Compare(a.pid, b.pid), cmp.Compare(a.fd, b.fd))
		}
		slices.SortStableFunc(os, compare)
		for i, o := range os {
			if i > 0 && compare(os[i-1], o) == 0 {
				last := &groups[len(groups)-1]
				*last = append(*last, o)
			} else {
				groups = append(groups, group{o})
			}
		}
	}
	return groups
}

// count returns how many entries there are of locks that look alike.
func (f *file) count() map[lock]int {
	n := make(map[lock]int, len(f.entries))
	for _, e := range f.entries {
		n[e.lock]++
	}
	return n
}

// explained reports whether the table explains what was seen: each group has an
// entry, or the table may hide it. Of shared locks that look alike the table may have
// fewer than there are.
func (f *file) explained() bool {
	entries := f.count()
	unclaimed := maps.Clone(entries)
	for _, g := range f.groups {
		l := g[0].lock
		switch {
		case unclaimed[l] > 0:
			unclaimed[l]--
		case l.Shared && entries[l] > 0:
		case seesAll() || slices.ContainsFunc(f.entries, func(e entry) bool { return e.conflicts(l.Claim) }):
			return false
		}
	}
	return true
}
