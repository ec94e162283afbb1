package semaphore

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

const (
	// A user has 128 inotify instances, for all programs: so a process takes a few. One
	// is enough for all that wait in one queue.
	maxBells = 16

	// linger is how long an instance is kept for the next wait. To close one takes the
	// kernel some 10 ms, to give up a watch some 10 µs.
	linger = time.Second
)

// A bell tells that a file was closed or has another name. It belongs to one goroutine,
// the one that called listen, until leave.
type bell struct {
	rung chan struct{} // capacity 1
	file *os.File      // of the inotify instance
	// The file descriptor is the os.File's; its number is for calls during which
	// nobody closes that.
	fd    int
	watch int
	gone  chan struct{} // closed when hear has returned
	uses  int           // guarded by bells.mu
}

var bells struct {
	mu   sync.Mutex
	idle []*bell
	made int // not more than maxBells
}

// listen returns a bell that rings from now on, or nil where there is none for the file.
func (s *semaphore) listen(pl *place) *bell {
	if s.opts.Wait == flockctx.WaitPoll || !pl.desc.IsLocal() {
		return nil
	}
	b, err := takeBell()
	if err != nil {
		return nil
	}
	err = withFD(pl.file(), func(fd int) (err error) {
		b.watch, err = unix.InotifyAddWatch(b.fd, ownName(fd), unix.IN_CLOSE|unix.IN_ATTRIB|unix.IN_MOVE_SELF|unix.IN_DELETE_SELF)
		return err
	})
	if err != nil {
		b.put()
		return nil
	}
	b.rung, b.gone = make(chan struct{}, 1), make(chan struct{})
	b.file.SetReadDeadline(time.Time{})
	go b.hear(b.rung, b.gone)
	return b
}

// leave ends what listen began.
func (b *bell) leave() {
	b.file.SetReadDeadline(time.Unix(1, 0))
	<-b.gone
	unix.InotifyRmWatch(b.fd, uint32(b.watch))
	b.put()
}

// hear rings for events of the watch. Others are of former ones.
func (b *bell) hear(rung chan<- struct{}, gone chan<- struct{}) {
	defer close(gone)
	var buf [64 * unix.SizeofInotifyEvent]byte
	for {
		n, err := b.file.Read(buf[:])
		if err != nil {
			return
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&buf[at]))
			at += unix.SizeofInotifyEvent + int(e.Len)
			if int(e.Wd) == b.watch || e.Mask&unix.IN_Q_OVERFLOW != 0 {
				select {
				case rung <- struct{}{}:
				default:
				}
			}
		}
	}
}

func takeBell() (*bell, error) {
	bells.mu.Lock()
	defer bells.mu.Unlock()
	if n := len(bells.idle); n > 0 {
		b := bells.idle[n-1]
		bells.idle = bells.idle[:n-1]
		b.uses++
		return b, nil
	}
	if bells.made == maxBells {
		return nil, errors.New("enough")
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	bells.made++
	return &bell{fd: fd, file: os.NewFile(uintptr(fd), "inotify")}, nil
}

// put keeps the bell for the next one that listens, for a while.
func (b *bell) put() {
	bells.mu.Lock()
	defer bells.mu.Unlock()
	bells.idle = append(bells.idle, b)
	uses := b.uses
	time.AfterFunc(linger, func() {
		if b.retire(uses) {
			b.file.Close()
		}
	})
}

// retire takes the bell from the idle ones, unless it was used since.
func (b *bell) retire(uses int) bool {
	bells.mu.Lock()
	defer bells.mu.Unlock()
	i := slices.Index(bells.idle, b)
	if i < 0 || b.uses != uses {
		return false
	}
	bells.idle = slices.Delete(bells.idle, i, i+1)
	bells.made--
	return true
}

// ring rings the bells of those who have a turn, if there are any. Closing f, which is
// to come, does so too, unless a child has inherited it.
func ring(f *os.File) {
	withFD(f, func(fd int) error {
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: turns + 1, Len: maxSlots}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk); err != nil || lk.Type == unix.F_UNLCK {
			return err
		}
		again, err := unix.Open(ownName(fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		return unix.Close(again)
	})
}

// ownName returns a path of an open file, whatever became of its name.
func ownName(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// withFD calls fn with the number of f's descriptor, which stays open meanwhile.
func withFD(f *os.File, fn func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := rc.Control(func(fd uintptr) { err = fn(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
