package flockctx

import (
	"io/fs"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/lockview"
	"github.com/flockctx/flockctx/internal/sys"
)

// A Holder is a lock that a process holds on a file, or waits for.
type Holder struct {
	// PID is the process that has the lock: of those whose descriptors share it,
	// the one that took it, or where that has ended or closed the file the one
	// with the lowest number. It is 0 where the process cannot be told: it is
	// another user's and may not be looked at, no process has the file open, only
	// mapped, or it is another process that waits for an OFD lock, which the kernel
	// does not name. It is never a guess.
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
// it costs some microseconds for each open file of the system. Each lock in it was
// there at some moment of the call, and no two holders in it exclude each other. Of
// files elsewhere nothing is asked that a server or daemon has to answer. It is right
// on network file systems for this machine only. Goroutines of this process that wait
// without the kernel knowing, because another goroutine is in their way or because
// they poll, are among those that wait; such goroutines of other processes are not.
//
// A lock is reported without a PID where no process that may be looked at has its
// descriptor: that of another user's process, one in flight through a socket, of
// the kernel's own, as for NFS clients, or kept by a mapping alone. On btrfs and
// overlayfs, where the kernel's table of locks has the same numbers for several
// files, such a lock may be on another one of those, and so may who waits for one of
// several locks that look alike. In a PID namespace who waits for a lock that a
// process outside took, or one that has ended, is not seen.
//
// An error is an [*fs.PathError], also where this process has no descriptor left. On
// systems other than Linux, and where there is no /proc for this PID namespace or it
// lacks the table of locks, it matches [errors.ErrUnsupported].
func Holders(path string) ([]Holder, error) {
	locks, err := lockview.Of(path, parkedOn)
	if err != nil {
		// Not with pathError: the error may be one of a file below /proc, and is to
		// name it.
		return nil, &fs.PathError{Op: "list the holders of", Path: path, Err: err}
	}
	return holdersOf(locks), nil
}

// AllHolders returns what Holders returns, for all locks on all files, sorted by
// path. An error is as that of Holders.
func AllHolders() ([]Holder, error) {
	locks, err := lockview.All(parkedOn)
	if err != nil {
		return nil, &fs.PathError{Op: "list", Path: "/proc/locks", Err: err}
	}
	return holdersOf(locks), nil
}

func holdersOf(locks []lockview.Lock) (hs []Holder) {
	for _, l := range locks {
		hs = append(hs, Holder{
			PID: l.PID, Command: l.Command, Mode: Exclusive, Mechanism: Mechanism(l.Kind), Waiting: l.Waiting,
			Start: l.Start, Length: l.Length, Path: l.Path, Device: l.Node.Dev, Inode: l.Node.Ino,
			Locker: l.Locker, Others: l.Others, WaitsFor: l.WaitsFor,
		})
		if l.Shared {
			hs[len(hs)-1].Mode = Shared
		}
	}
	return hs
}

// parkedOn returns the goroutines of this process that wait for a lock on the file
// id, or with nil on any file.
func parkedOn(id *lockview.File) (ws []lockview.Waiter) {
	for i := range shards {
		s := &shards[i]
		if id != nil && s != shardOf(sys.FileID{Dev: id.Dev, Ino: id.Ino}) {
			continue
		}
		s.mu.Lock()
		for q := s.queues; q != nil; q = q.next {
			if id == nil || q.key.id.Dev == id.Dev && q.key.id.Ino == id.Ino {
				ws = q.parked(ws)
			}
		}
		s.mu.Unlock()
	}
	return ws
}

// parked appends those that wait in the queue, or for a handle that has the lock and
// that another goroutine uses. The mutex is held.
func (q *queue) parked(ws []lockview.Waiter) []lockview.Waiter {
	w := lockview.Waiter{File: lockview.File{Dev: q.key.id.Dev, Ino: q.key.id.Ino}}
	w.Kind, w.Start, w.Length = lockview.Kind(q.key.mechanism), q.key.start, q.key.length
	add := func(m gate.Mode, listed bool) {
		w.Shared, w.Listed = m == gate.Reader, listed
		ws = append(ws, w)
	}
	for l := q.holders; l != nil; l = l.nextHolder {
		w.Path = l.Name()
	}
	if m, closed := q.gate.Closed(); closed {
		add(m, true)
	}
	q.gate.Waiting(func(m gate.Mode, _ any) { add(m, false) })
	for l := q.holders; l != nil; l = l.nextHolder {
		l.mu.Lock()
		if l.others != nil {
			l.others.turn.Waiting(func(gate.Mode, any) { add(l.mode, false) })
		}
		l.mu.Unlock()
	}
	return ws
}
