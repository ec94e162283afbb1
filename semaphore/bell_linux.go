package semaphore

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/internal/quiet"
	"golang.org/x/sys/unix"
)

const (
	// A user has 128 inotify instances, for all programs: so a process takes a few. One
	// is enough for all that wait in one queue.
	maxBells = 16

	// linger is how long an instance is kept for the next wait. To close one takes the
	// kernel some 10 ms, to give up a watch some 10 µs.
	linger = time.Second

	// events is the size of a buffer for some, of which all mean the same.
	events = 64 * unix.SizeofInotifyEvent
)

// A bell tells that a file was closed or has another name. It belongs to one goroutine,
// the one that called listen, until leave.
type bell struct {
	// file is the inotify instance. Its number is for calls during which nobody
	// closes that.
	file  *os.File
	fd    int
	watch int    // stays after leave, for the next one that listens to the same file
	stop  func() // has nobody end a wait any more

	idleSince time.Time // guarded by bells.mu
}

var bells struct {
	mu      sync.Mutex
	idle    []*bell
	made    int  // not more than maxBells
	closing bool // closeIdle will be called
}

// listen returns a bell that rings from now on, until done, or nil where there is none
// for the file.
func (s *semaphore) listen(ctx context.Context, done <-chan struct{}, pl *place) *bell {
	if s.opts.Wait == flockctx.WaitPoll || !pl.desc.IsLocal() {
		return nil
	}
	b, err := takeBell()
	if err != nil {
		return nil
	}
	before := b.watch
	err = withFD(pl.desc.Made(), func(fd int) (err error) {
		b.watch, err = unix.InotifyAddWatch(b.fd, ownName(fd), unix.IN_CLOSE|unix.IN_ATTRIB|unix.IN_MOVE_SELF|unix.IN_DELETE_SELF)
		return err
	})
	if before > 0 && before != b.watch {
		unix.InotifyRmWatch(b.fd, uint32(before))
	}
	if err != nil {
		b.watch = 0
		b.put()
		return nil
	}
	// What rang before is nothing to the look that follows.
	for n := 1; n > 0; {
		var buf [events]byte
		n, _ = unix.Read(b.fd, buf[:])
	}
	b.stop = quiet.OnEnd(ctx, done, func() { b.file.SetReadDeadline(time.Unix(1, 0)) })
	return b
}

// wait waits for the bell, until done or for d. It reports whether it rang.
func (b *bell) wait(done <-chan struct{}, d time.Duration) (rang bool) {
	b.file.SetReadDeadline(time.Now().Add(d))
	select {
	case <-done: // the deadline above may have come after that of the end
		return false
	default:
	}
	var buf [events]byte
	switch _, err := b.file.Read(buf[:]); {
	case err == nil:
		return true
	case !errors.Is(err, os.ErrDeadlineExceeded):
		sleep(done, d)
	}
	return false
}

// leave ends what listen began.
func (b *bell) leave() {
	b.stop()
	b.put()
}

func takeBell() (*bell, error) {
	bells.mu.Lock()
	defer bells.mu.Unlock()
	if n := len(bells.idle); n > 0 {
		b := bells.idle[n-1]
		bells.idle = bells.idle[:n-1]
		return b, nil
	}
	if bells.made == maxBells {
		return nil, errors.New("enough")
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	b := &bell{fd: fd, file: os.NewFile(uintptr(fd), "inotify")}
	if err := b.file.SetReadDeadline(time.Time{}); err != nil {
		b.file.Close()
		return nil, err
	}
	bells.made++
	return b, nil
}

// put keeps the bell for the next one that listens, for a while.
func (b *bell) put() {
	bells.mu.Lock()
	defer bells.mu.Unlock()
	b.idleSince = time.Now()
	bells.idle = append(bells.idle, b)
	if !bells.closing {
		bells.closing = true
		time.AfterFunc(linger, closeIdle)
	}
}

// closeIdle closes the bells that were idle for long, and comes again where others are.
func closeIdle() {
	bells.mu.Lock()
	var old []*bell
	bells.idle = slices.DeleteFunc(bells.idle, func(b *bell) bool {
		is := time.Since(b.idleSince) >= linger
		if is {
			old = append(old, b)
		}
		return is
	})
	bells.made -= len(old)
	if bells.closing = bells.made > 0; bells.closing {
		time.AfterFunc(linger, closeIdle)
	}
	bells.mu.Unlock()
	for _, b := range old {
		b.file.Close()
	}
}

// ring rings the bells that listen to f, though f stays open: it is opened once more,
// and that closed.
func ring(f *os.File) {
	withFD(f, func(fd int) error {
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
