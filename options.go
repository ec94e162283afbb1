package flockctx

import (
	"fmt"
	"io/fs"
	"math"
	"os"
	"syscall"
	"time"

	"github.com/flockctx/flockctx/internal/sys"
)

// A Mode says with whom a lock is shared.
type Mode int

const (
	Exclusive Mode = iota // held by one handle alone
	Shared                // held by any number of handles, never beside an exclusive one
)

// String returns "exclusive" or "shared".
func (m Mode) String() string {
	switch m {
	case Exclusive:
		return "exclusive"
	case Shared:
		return "shared"
	}
	return fmt.Sprintf("Mode(%d)", int(m))
}

// Wait says how a Lock waits for another process. Goroutines of one process
// wait for each other without any system call; of them the first waits for the other
// process, on behalf of those behind it too: as often, and in the way, that is right for
// the strictest of them.
type Wait int

const (
	// WaitAuto waits in the kernel where that can be interrupted: on Linux on
	// file systems known to be local, and on Windows. It polls elsewhere, and
	// where 64 goroutines of the process wait in the kernel already.
	WaitAuto Wait = iota

	// WaitBlock waits in the kernel on any file system, and polls where nothing could
	// end such a wait. On a network or FUSE file system that answers an interrupt late,
	// Lock returns late too. Past 64 such goroutines it polls as WaitAuto does.
	WaitBlock

	// WaitPoll tries again and again, at intervals given by Options.Poll. It
	// needs no thread and no signal, and is the one to choose inside a
	// testing/synctest bubble, whose clock a blocked system call would stop.
	WaitPoll
)

// String returns "auto", "block" or "poll".
func (w Wait) String() string {
	switch w {
	case WaitAuto:
		return "auto"
	case WaitBlock:
		return "block"
	case WaitPoll:
		return "poll"
	}
	return fmt.Sprintf("Wait(%d)", int(w))
}

// A Mechanism is a kind of lock of the operating system. On local Linux file
// systems locks of BSD and of OFD do not see each other: all programs that share
// a file must use the same one.
type Mechanism int

const (
	// BSD is flock(2), on Windows LockFileEx: the whole file. Use it unless you
	// have a reason not to; flock(1) uses it too.
	BSD Mechanism = iota

	// OFD are the open file description locks of fcntl(2): Linux and macOS. They
	// cover a byte range, convert atomically, and meet the POSIX record locks
	// of other processes. An exclusive one needs a file open for writing.
	OFD

	// POSIX are record locks of fcntl(2), as lockf(3) takes them. Holders
	// reports them; Lock refuses them with [errors.ErrUnsupported], because any
	// close of the file anywhere in the process would drop them.
	POSIX

	// Lease is a lease of fcntl(2), F_SETLEASE. Holders reports it; Lock
	// refuses it with [errors.ErrUnsupported].
	Lease
)

// String returns "flock", "ofd", "posix" or "lease".
func (m Mechanism) String() string {
	switch m {
	case BSD:
		return "flock"
	case OFD:
		return "ofd"
	case POSIX:
		return "posix"
	case Lease:
		return "lease"
	}
	return fmt.Sprintf("Mechanism(%d)", int(m))
}

// Backoff bounds the interval between two tries of a Lock that polls. It starts at Min
// and doubles up to Max, with jitter of up to a quarter less. Zero values mean 1 ms and
// 100 ms; a Max below Min counts as Min.
//
// Whatever Max says, the interval is never below 1 ms, and each further goroutine of this
// process that polls adds 1.2 ms to it. Where several poll, one above 20 ms ends at the
// next multiple of 20 ms, so that they wake the process together. So thousands of them
// take some 2 % of a core.
type Backoff struct{ Min, Max time.Duration }

// Options says what to lock and how. A nil *Options and the zero value are the
// defaults. Options are copied when a handle is made; later changes have no effect.
type Options struct {
	Mode      Mode      // Exclusive or Shared
	Wait      Wait      // WaitAuto, WaitBlock or WaitPoll
	Mechanism Mechanism // BSD or OFD

	// Start and Length, in bytes, limit an OFD lock to a range of the file; a
	// Length of 0 reaches to the end of the file, whatever it grows to. With
	// BSD they must be zero, else Lock fails with [errors.ErrUnsupported].
	Start, Length int64

	// Fair has processes get the lock in the order in which they came, readers and
	// writers alike, instead of as the kernel wakes them up: where a writer must not
	// starve beside readers of other processes. Processes that do not ask for it exclude
	// each other all the same, but do not stand in line. A process that is stopped while
	// it waits holds up those behind it. Fair needs Linux, a local file system, Mechanism
	// BSD and a file that is open for writing; else Lock fails with
	// [errors.ErrUnsupported], as LockFile does. Other programs must not lock the whole
	// file with fcntl(2). Convert does not stand in line.
	Fair bool

	// Poll bounds the intervals where Lock polls.
	Poll Backoff

	// Flag is passed to open(2) as for [os.OpenFile], with two differences: O_TRUNC
	// takes effect only once the lock is held (a Shared one too, beside others that hold
	// it shared), and the descriptor is always close-on-exec. Zero (which is also
	// O_RDONLY) means: for reading and writing, created if missing; for reading only
	// where writing is refused (EACCES, EPERM, EROFS, ETXTBSY) or path is a directory.
	Flag int

	// ReadOnly opens the file for reading only, and never creates it: what Flag cannot
	// say, since O_RDONLY is 0. Flag must have nothing that writes or creates.
	ReadOnly bool

	// Perm are the permissions, before umask, of a file that Lock creates.
	// Zero means 0o600.
	Perm fs.FileMode

	// ExactPerm gives a file that Lock creates Perm exactly, whatever the umask: for
	// locks that several users share. On Linux, without Root, nobody sees it with other
	// permissions (O_TMPFILE of open(2); where the file system lacks that, and elsewhere,
	// chmod(2) follows at once). On Windows it means nothing.
	ExactPerm bool

	// Root is the directory that the path is relative to and cannot leave, symbolic
	// links included, when it is opened, verified and removed: see [os.Root], which must
	// stay open as long as the handle is used. Through a symbolic link in it nothing is
	// removed.
	Root *os.Root

	// Tracer is told what happens to the handle, beside that of [SetTracer].
	Tracer *Tracer

	// Remove makes Close remove the file while it still holds the lock, if the
	// path still names it. A Lock that waits meanwhile notices and locks the
	// file's successor. Behind a symbolic link the file is removed under its own
	// name, and the link stays. A directory is not removed. Where the file cannot be
	// removed, Close says so, and releases the lock all the same. With Shared the last
	// holder removes it (but where the last ones close at the same moment, perhaps
	// nobody), which for OFD needs the file open for writing.
	Remove bool
}

const (
	defaultPollMin = time.Millisecond
	defaultPollMax = 100 * time.Millisecond
	defaultPerm    = 0o600
)

// settings are Options with the defaults filled in. They never change.
type settings struct {
	Options
	invalid error // what is wrong with them
}

// common are the settings of all handles whose Options give at most the mode, so
// that those need none of their own.
var common = [...]settings{
	Exclusive: {Options: Options{Mode: Exclusive}.withDefaults()},
	Shared:    {Options: Options{Mode: Shared}.withDefaults()},
}

// settings returns what a handle works with. o may be nil.
func (o *Options) settings() *settings {
	if o == nil {
		return &common[Exclusive]
	}
	if m := o.Mode; (m == Exclusive || m == Shared) && *o == (Options{Mode: m}) {
		return &common[m]
	}
	s := &settings{Options: o.withDefaults()}
	s.invalid = s.check()
	return s
}

// withDefaults returns o with the defaults filled in.
func (o Options) withDefaults() Options {
	if o.Poll.Min == 0 {
		o.Poll.Min = defaultPollMin
	}
	if o.Poll.Max == 0 {
		o.Poll.Max = defaultPollMax
	}
	o.Poll.Max = max(o.Poll.Max, o.Poll.Min)
	if o.Perm == 0 {
		o.Perm = defaultPerm
	}
	return o
}

// check returns what is wrong with o, or nil.
func (o *Options) check() error {
	switch {
	case o.Mode != Exclusive && o.Mode != Shared,
		o.Wait < WaitAuto || o.Wait > WaitPoll,
		o.Mechanism < BSD || o.Mechanism > Lease:
		return fmt.Errorf("%v, %v, %v: %w", o.Mode, o.Wait, o.Mechanism, syscall.EINVAL)
	case o.Mechanism != BSD && o.Mechanism != OFD:
		return sys.Unsupported("%v locks are reported by Holders only", o.Mechanism)
	case o.Mechanism == BSD && (o.Start != 0 || o.Length != 0):
		return sys.Unsupported("a byte range needs Mechanism OFD")
	case o.Fair && o.Mechanism != BSD:
		return sys.Unsupported("Fair needs Mechanism BSD")
	case o.Fair && o.ReadOnly:
		return sys.Unsupported("Fair needs the file open for writing")
	case o.Start < 0 || o.Length < 0 || o.Start > math.MaxInt64-o.Length:
		return fmt.Errorf("byte range %d+%d: %w", o.Start, o.Length, syscall.EINVAL)
	case o.ReadOnly && o.Flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND) != 0:
		return fmt.Errorf("ReadOnly with a Flag that writes or creates: %w", syscall.EINVAL)
	case o.Flag&os.O_TRUNC != 0 && o.Flag&(os.O_WRONLY|os.O_RDWR) == 0:
		return fmt.Errorf("O_TRUNC needs O_RDWR or O_WRONLY: %w", syscall.EINVAL)
	case o.Poll.Min < 0:
		return fmt.Errorf("poll interval %v: %w", o.Poll.Min, syscall.EINVAL)
	case o.Perm&^(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0:
		return fmt.Errorf("permissions %v: %w", o.Perm, syscall.EINVAL)
	}
	return nil
}

// flagless reports whether the file is opened as Flag 0 says.
func (o *Options) flagless() bool { return o.Flag == 0 && !o.ReadOnly }

// openArgs returns with what to open the file first: with all but O_TRUNC.
func (o *Options) openArgs() (flag int, perm fs.FileMode) {
	if o.flagless() {
		return os.O_RDWR, 0
	}
	return o.Flag &^ os.O_TRUNC, o.Perm
}
