package flockctx

import (
	"cmp"
	"io/fs"
	"slices"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/sys"
)

// A Holder is a lock that a process holds on a file, or waits for.
type Holder struct {
	// PID is the process that has the lock: of those whose descriptors share it,
	// the one that took it, or where that has ended or closed the file the one
	// with the lowest number. It is 0 where the process cannot be told: it is
	// another user's and may not be looked at, or no process has the file open,
	// only mapped. It is never a guess.
	PID int

	Command   string // command line of PID, its arguments separated by spaces
	Mode      Mode
	Mechanism Mechanism
	Waiting   bool // the process waits for the lock, and does not have it

	Start, Length int64 // the byte range; a Length of 0 reaches to the end of the file

	// Path is the file: as it was given to Holders, or as the process's descriptor
	// names it. It is empty where only Device and Inode are known.
	Path string

	// Device and Inode are the file's in the kernel's table of locks. Device is
	// that of the file system, which on btrfs is not the one that stat(2) gives.
	Device, Inode uint64

	// Locker is the process that asked for the lock, as the kernel noted it. It
	// may have ended since, and its number may be another process's now. It is 0
	// where the kernel notes none, as for OFD.
	Locker int

	// Others are further processes with descriptors of the same open file
	// description, by inheritance or otherwise: the lock is theirs as well, and
	// stays until all have closed them or one unlocks.
	Others []int

	// WaitsFor is, for one that waits, the PID of a holder in its way, or 0 where
	// that is unknown. There may be further ones.
	WaitsFor int
}

// Holders returns who holds a lock on the file that path names, and who waits for
// one, in all of the system that /proc shows to this process: locks of all
// mechanisms, also of programs that do not use this package. Holders come before
// those that wait.
//
// The answer is a snapshot; it may be out of date when it is returned, and taking
// it costs some microseconds for each open file of the system. It is right on
// network file systems for this machine only. Goroutines of this process that wait
// without the kernel knowing, because another goroutine is in their way or because
// they poll, are among those that wait; such goroutines of other processes are not.
//
// A lock is reported without a PID where no process that may be looked at has its
// descriptor: that of another user's process, one in flight through a socket, of
// the kernel's own, as for NFS clients, or kept by a mapping alone. On btrfs and
// overlayfs, where the kernel's table of locks has the same numbers for several
// files, such a lock may be on another one of those.
//
// An error is an [*fs.PathError]. On systems other than Linux, and where there is
// no /proc for this PID namespace or it lacks the table of locks, it matches
// [errors.ErrUnsupported].
func Holders(path string) ([]Holder, error) {
	hs, err := sysHolders(path, false)
	if err != nil {
		// Not with pathError: the error may be one of a file below /proc, and is to
		// name it.
		return nil, &fs.PathError{Op: "list the holders of", Path: path, Err: err}
	}
	return hs, nil
}

// AllHolders returns what Holders returns, for all locks on all files, sorted by
// path. An error is as that of Holders.
func AllHolders() ([]Holder, error) {
	hs, err := sysHolders("", true)
	if err != nil {
		return nil, &fs.PathError{Op: "list", Path: "/proc/locks", Err: err}
	}
	return hs, nil
}

// A fileID is a file in the kernel's table.
type fileID struct{ dev, ino uint64 }

// A parked is a goroutine of this process that waits for a lock.
type parked struct {
	queueKey
	id     fileID
	mode   Mode
	kernel bool   // for another process: in the kernel, where it is seen, or polling
	path   string // of a handle that holds the lock
}

// parkedOn returns the goroutines that wait for a lock on the file id, or with nil
// on any file.
func parkedOn(id *fileID) (ps []parked) {
	for i := range shards {
		s := &shards[i]
		if id != nil && s != shardOf(sys.FileID{Dev: id.dev, Ino: id.ino}) {
			continue
		}
		var onHandles []parked
		s.mu.Lock()
		for q := s.queues; q != nil; q = q.next {
			p := parked{queueKey: q.key, id: fileID{q.key.id.Dev, q.key.id.Ino}}
			if id != nil && p.id != *id {
				continue
			}
			for l := q.holders; l != nil; l = l.nextHolder {
				p.path = l.path
				onHandles = append(onHandles, l.parked(p)...)
			}
			if m, closed := q.gate.Closed(); closed {
				p.mode, p.kernel = Mode(m), true
				ps = append(ps, p)
				p.kernel = false
			}
			q.gate.Waiting(func(m gate.Mode, _ any) {
				p.mode = Mode(m)
				ps = append(ps, p)
			})
		}
		s.mu.Unlock()
		ps = append(ps, onHandles...)
	}
	return ps
}

// parked returns the goroutines that wait for the handle itself, which another
// goroutine uses.
func (l *Flock) parked(p parked) (ps []parked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.turn != nil {
		l.turn.Waiting(func(gate.Mode, any) {
			p.mode, p.path = l.mode, l.path
			ps = append(ps, p)
		})
	}
	return ps
}

// sortHolders sorts by file, then holders before those that wait; those keep the
// order in which they wait.
func sortHolders(hs []Holder) {
	slices.SortStableFunc(hs, func(a, b Holder) int {
		c := cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Device, b.Device), cmp.Compare(a.Inode, b.Inode))
		if c != 0 || a.Waiting && b.Waiting {
			return c
		}
		if a.Waiting != b.Waiting {
			if b.Waiting {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Start, b.Start))
	})
}
