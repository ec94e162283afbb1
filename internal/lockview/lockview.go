// Package lockview tells who holds a lock on a file and who waits for one, from
// what /proc says. It knows no handle, and changes nothing: it opens no file but
// those below /proc, and the one that Of is asked about with O_PATH only.
//
// /proc/locks has all locks and who waits for them, but names the process that took
// a lock, which may be gone while a child that inherited the descriptor has it; and
// it names the file by numbers that on btrfs and overlayfs can fit several files.
// /proc/PID/fdinfo/FD has the locks of one descriptor, so it tells the true holders.
// What the table has and no descriptor explains is reported without a PID.
//
// The two are never of one moment. So the table is read before the descriptors and
// after them, and a file is believed once both readings are the same and explain
// its descriptors; until then those processes are looked at again that have to do
// with it. The last of some rounds has the final word for a file that never comes
// to rest: of what contradicts itself the later is kept. So each lock in an answer
// was there at some moment of the call, and no two of them exclude each other.
//
// Nothing is asked that a file system's server or daemon has to answer, except about
// the path that Of is given: of a descriptor only what fdinfo says, and where that is
// not enough, what statx(2) knows without asking. So one that has died holds up
// nobody else. A process that is gone, or may not be looked at, is as if it were not
// there; every other error is returned, that there is no descriptor left among them.
//
// All functions may be called at any time, by any number of goroutines.
package lockview

import (
	"cmp"
	"os"
	"slices"
)

// A Kind is a kind of lock. The numbers are those of flockctx.Mechanism.
type Kind int

const (
	Flock Kind = iota
	OFD
	POSIX
	Lease
)

// A Claim is what is locked, or is to be, and how.
type Claim struct {
	Kind          Kind
	Shared        bool
	Start, Length int64 // a Length of 0 reaches to the end of the file
}

// conflicts reports whether two processes cannot have a and b on one file at the
// same time.
func (a Claim) conflicts(b Claim) bool {
	kin := a.Kind == b.Kind || a.Kind == OFD && b.Kind == POSIX || a.Kind == POSIX && b.Kind == OFD
	return kin && a.Kind != Lease && !(a.Shared && b.Shared) &&
		(a.Length == 0 || b.Start-a.Start < a.Length) && (b.Length == 0 || a.Start-b.Start < b.Length)
}

// A File tells files apart.
type File struct{ Dev, Ino uint64 }

// A Lock is a lock that a process holds, or waits for. PID, Command, Path, Locker,
// Others and WaitsFor are as in flockctx.Holder.
type Lock struct {
	Claim
	PID      int
	Command  string
	Waiting  bool
	Path     string
	Node     File // the file's numbers in the kernel's table
	File     File // those of stat(2), as far as they are known; else Node
	Locker   int
	Others   []int
	WaitsFor int
}

// A Waiter is a goroutine of this process that waits for a lock.
type Waiter struct {
	Claim
	File   File // as stat(2) has it
	Path   string
	Listed bool // it waits in the kernel, or polls: the table may have it already
}

// add adds the goroutines of this process that the kernel does not see. known is
// what is known of a file without a lock.
func add(locks []Lock, own []Waiter, known func(w Waiter) Lock, command func(pid int) string) []Lock {
	if len(own) == 0 {
		return locks
	}
	self := os.Getpid()
	byFile := make(map[File][]int)
	for i, l := range locks {
		byFile[l.File] = append(byFile[l.File], i)
	}
	claimed := make([]bool, len(locks))
next:
	for _, w := range own {
		l := known(w)
		for _, i := range byFile[w.File] {
			x := &locks[i]
			l.Path, l.Node = x.Path, x.Node
			switch {
			case x.Waiting:
				// For OFD the kernel does not say who waits; one that looks alike is
				// taken to be this one.
				if w.Listed && !claimed[i] && x.Claim == w.Claim && (x.PID == self || x.PID == 0 && x.Kind == OFD) {
					claimed[i] = true
					x.PID, x.Command = self, command(self)
					continue next
				}
			case x.conflicts(w.Claim) && (l.WaitsFor == 0 || x.PID == self):
				l.WaitsFor = x.PID
			}
		}
		l.Claim, l.File = w.Claim, w.File
		l.PID, l.Locker, l.Command, l.Waiting = self, self, command(self), true
		locks = append(locks, l)
	}
	return locks
}

// order sorts by file, then holders before those that wait; those keep the order in
// which they wait.
func order(locks []Lock) {
	slices.SortStableFunc(locks, func(a, b Lock) int {
		c := cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Node.Dev, b.Node.Dev), cmp.Compare(a.Node.Ino, b.Node.Ino))
		switch {
		case c != 0 || a.Waiting && b.Waiting:
			return c
		case a.Waiting:
			return 1
		case b.Waiting:
			return -1
		}
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Start, b.Start))
	})
}
