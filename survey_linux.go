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

// An inode names a file as /proc/locks does. Files of several btrfs subvolumes, or
// of several layers of overlayfs, can have the same.
type inode struct{ dev, ino uint64 }

// A survey is what /proc says, of one file or of all.
type survey struct {
	entries []procEntry         // of /proc/locks
	owners  []owner             // descriptors with locks
	openers map[fileID][]opener // descriptors of the files looked for
	files   map[inode][]fileID  // that were seen with these numbers
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

func newSurvey(entries []procEntry) *survey {
	return &survey{
		entries: entries,
		openers: make(map[fileID][]opener), files: make(map[inode][]fileID), command: make(map[int]string),
	}
}

// initNamespace reports whether this process is in the first PID namespace, which
// sees all processes.
var initNamespace = sync.OnceValue(func() bool {
	ns, _ := os.Readlink("/proc/self/ns/pid")
	return ns == "pid:[4026531836]" // PROC_PID_INIT_INO, a constant of the kernel
})

// look fills in all but the entries.
func (s *survey) look(of *subject) error {
	if err := s.walk(s.examine(of)); err != nil || of != nil {
		return err
	}
	// Who waits is among those that have the file open. In other PID namespaces the
	// table may hide that somebody does.
	if initNamespace() && !slices.ContainsFunc(s.entries, func(e procEntry) bool { return len(e.waiters) > 0 }) {
		return nil
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

// examine returns what look does with a descriptor.
func (s *survey) examine(of *subject) func(p *process, fd string) {
	if of == nil {
		// A file that has locks is asked for its identity; the others are not, since
		// they may be on a network file system that does not answer.
		return func(p *process, fd string) {
			locks := p.fdinfo(fd).locks
			if len(locks) == 0 {
				return
			}
			if id, ok := p.identify(fd); ok {
				s.addOwner(p, fd, id, p.link("fd/"+fd), locks)
			}
		}
	}
	s.files[of.node] = []fileID{of.id}
	return func(p *process, fd string) {
		id, ok := p.identify(fd)
		switch {
		case !ok:
		case id == of.id:
			s.addOpener(p, fd, id)
			s.addOwner(p, fd, id, of.path, p.fdinfo(fd).locks)
		case of.ambiguous():
			// Which entries of the table are another file's can only be told by
			// who has that file open.
			fi := p.fdinfo(fd)
			fi.locks = slices.DeleteFunc(fi.locks, func(l procLock) bool { return l.inode != of.node })
			if len(fi.locks) > 0 || fi.ino == of.node.ino && p.deviceOf(fi.mount) == of.node.dev {
				s.addFile(of.node, id)
				s.addOpener(p, fd, id)
				s.addOwner(p, fd, id, p.link("fd/"+fd), fi.locks)
			}
		}
	}
}

func (s *survey) addFile(node inode, id fileID) {
	if !slices.Contains(s.files[node], id) {
		s.files[node] = append(s.files[node], id)
	}
}

func (s *survey) addOpener(p *process, name string, id fileID) {
	fd, _ := strconv.Atoi(name)
	s.openers[id] = append(s.openers[id], opener{p.pid, fd, p.task})
	s.addCommand(p)
}

func (s *survey) addOwner(p *process, name string, id fileID, path string, locks []procLock) {
	fd, _ := strconv.Atoi(name)
	for _, l := range locks {
		s.addFile(l.inode, id)
		s.owners = append(s.owners, owner{opener{p.pid, fd, p.task}, id, path, l})
		s.addCommand(p)
	}
}

func (s *survey) addCommand(p *process) {
	if _, ok := s.command[p.pid]; !ok {
		s.command[p.pid] = p.command()
	}
}

func (s *survey) hasOpen(pid int, file fileID) bool {
	return slices.ContainsFunc(s.openers[file], func(o opener) bool { return o.pid == pid })
}

func (s *survey) explains(l procLock) bool {
	return slices.ContainsFunc(s.owners, func(o owner) bool { return o.lock == l })
}

// settle brings the survey in line with the table where locks come and go all the
// time: a lock may have passed from a process that was looked at late to one that
// was looked at early, so that the survey has both holders or none.
func (s *survey) settle(of *subject) error {
	examine := s.examine(of)
	for attempt := 1; ; attempt++ {
		s.owners = slices.DeleteFunc(s.owners, func(o owner) bool {
			p := &process{dir: unix.AT_FDCWD, base: "/proc/" + strconv.Itoa(o.pid) + "/task/" + strconv.Itoa(o.task)}
			return !slices.Contains(p.fdinfo(strconv.Itoa(o.fd)).locks, o.lock)
		})
		for _, e := range s.entries {
			if e.pid > 0 && !s.explains(e.procLock) {
				s.visit(unix.AT_FDCWD, "/proc/"+strconv.Itoa(e.pid), e.pid, examine)
			}
		}
		if of == nil || attempt == 10 {
			break
		}
		now, err := readLocks(of)
		if err != nil {
			return err
		}
		if sameEntries(now, s.entries) {
			break
		}
		s.entries = now
	}
	s.tidy()
	return nil
}

// tidy removes what cannot be, or be any more, and reports whether there was any:
// the kernel hands out its table by the page, and what processes were asked is of
// several moments.
func (s *survey) tidy() bool {
	before := len(s.entries) + len(s.owners)
	s.entries = withoutEarlier(s.entries, func(a, b procEntry) bool {
		files := s.files[a.inode]
		return a.inode == b.inode && len(files) == 1 && files[0].dev == a.dev && a.conflicts(b.procLock)
	})
	s.owners = withoutEarlier(s.owners, func(a, b owner) bool {
		return a.file == b.file && a.lock.conflicts(b.lock) && !s.same(a, b)
	})
	if initNamespace() { // others hide some locks, of which then only descriptors tell
		s.owners = slices.DeleteFunc(s.owners, func(o owner) bool {
			return !slices.ContainsFunc(s.entries, func(e procEntry) bool { return e.procLock == o.lock })
		})
	}
	return len(s.entries)+len(s.owners) < before
}

// withoutEarlier removes what conflicts with a later one, which was seen later.
func withoutEarlier[T any](all []T, conflict func(a, b T) bool) (rest []T) {
	for i, a := range all {
		if !slices.ContainsFunc(all[i+1:], func(b T) bool { return conflict(a, b) }) {
			rest = append(rest, a)
		}
	}
	return rest
}

// walk calls fn for all descriptors of all processes.
func (s *survey) walk(fn func(p *process, fd string)) error {
	proc, err := retry(func() (int, error) {
		return unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return procError("open", "/proc", err)
	}
	defer unix.Close(proc)
	for _, name := range readNames(proc, ".") {
		if pid, err := strconv.Atoi(name); err == nil {
			s.visit(proc, name, pid, fn)
		}
	}
	return nil
}

// visit calls fn for all descriptors of the process whose directory is name.
func (s *survey) visit(at int, name string, pid int, fn func(p *process, fd string)) {
	// A descriptor of the directory stays that of this process, also when its
	// number goes to another one.
	dir, err := retry(func() (int, error) {
		return unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return
	}
	defer unix.Close(dir)
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
}
