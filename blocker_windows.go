//go:build windows

package flockctx

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Waiting in the kernel with overlapped LockFileEx, and CancelIoEx to end it.

// An interrupt ends an overlapped operation on an open file.
//
// The kernel writes to the OVERLAPPED structure until the operation has ended, also
// after it was cancelled: so the structure is pinned, and run returns only then.
type interrupt struct {
	handle     windows.Handle
	overlapped windows.Overlapped
	event      windows.Handle
	pin        runtime.Pinner

	mu      sync.Mutex // guards the rest, and is held while an operation begins or is cancelled
	fired   bool       // somebody wants the operation to end
	pending bool       // the operation may be under way
}

func newInterrupt(h windows.Handle) (*interrupt, error) {
	event, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return nil, err
	}
	in := &interrupt{handle: h, event: event}
	in.pin.Pin(in)
	return in, nil
}

// free is called when no run is under way. The interrupt may be fired still.
func (in *interrupt) free() {
	windows.CloseHandle(in.event)
	in.pin.Unpin()
}

// fire has the operation that is under way end, and any later one not begin. The
// operation may be granted all the same: whoever called run is told.
func (in *interrupt) fire() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.fired = true
	if in.pending {
		windows.CancelIoEx(in.handle, &in.overlapped) // ERROR_NOT_FOUND: it has just ended
	}
}

func (in *interrupt) wasFired() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.fired
}

// run begins an overlapped operation and waits until it has ended.
func (in *interrupt) run(begin func(*windows.Overlapped) error) error {
	// A pending operation is cancelled where the thread that began it exits.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	in.mu.Lock()
	if in.fired {
		in.mu.Unlock()
		return errInterrupted
	}
	// The low-order bit keeps the end of the operation from being queued to a
	// completion port: once File was called, the handle belongs to that of Go's
	// runtime. See GetQueuedCompletionStatus.
	in.overlapped = windows.Overlapped{HEvent: in.event | 1}
	err := begin(&in.overlapped)
	in.pending = err == windows.ERROR_IO_PENDING
	in.mu.Unlock()
	if err == windows.ERROR_IO_PENDING {
		var n uint32
		err = windows.GetOverlappedResult(in.handle, &in.overlapped, &n, true)
		in.mu.Lock()
		in.pending = false
		in.mu.Unlock()
	}
	if err != nil {
		return lockError(err)
	}
	return nil
}

// canBlock reports whether a wait in the kernel can be interrupted. Wine 8 says of an
// overlapped LockFileEx that it is pending, and then that it was granted, which it
// was not.
var canBlock = sync.OnceValue(func() bool {
	return windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() != nil
})

// isLocal reports whether the file is on this machine, where a cancelled wait in the
// kernel ends at once.
func (d *descriptor) isLocal() (local bool) {
	d.control(func(fd uintptr) error {
		local = !isRemote(windows.Handle(fd))
		return nil
	})
	return local
}

// isOverlapped reports whether the file is open for overlapped operations. Requested
// on any other, which only LockFile can be given, a lock holds up the thread and
// every use of the file until it is granted.
func isOverlapped(h windows.Handle) bool {
	const fileModeInformation = 16
	var mode uint32
	var iosb windows.IO_STATUS_BLOCK
	err := windows.NtQueryInformationFile(h, &iosb, (*byte)(unsafe.Pointer(&mode)), uint32(unsafe.Sizeof(mode)), fileModeInformation)
	return err == nil && mode&(windows.FILE_SYNCHRONOUS_IO_ALERT|windows.FILE_SYNCHRONOUS_IO_NONALERT) == 0
}

// isRemote reports whether the file is on another machine, or may be.
func isRemote(h windows.Handle) bool {
	const unc = `\\?\UNC\`
	var path [windows.MAX_LONG_PATH]uint16
	n, err := windows.GetFinalPathNameByHandle(h, &path[0], uint32(len(path)), 0)
	if err != nil || n < uint32(len(unc)) || n > uint32(len(path)) {
		return true
	}
	return strings.EqualFold(windows.UTF16ToString(path[:len(unc)]), unc)
}

// block waits in the kernel for the lock in mode m. It returns nil, errEnded,
// fs.ErrClosed, errMustPoll, or the system's error. Nil may come together with the
// end of the context or a Close, which the caller looks for.
func (l *Flock) block(a *attempt, m Mode) error {
	if !canBlock() {
		return errMustPoll
	}
	r := l.request(opBlock)
	r.mode = m
	return l.desc.control(func(fd uintptr) error {
		h := windows.Handle(fd)
		if !isOverlapped(h) {
			if l.opts.Wait == WaitBlock {
				return unsupported("WaitBlock needs a file that was opened with FILE_FLAG_OVERLAPPED")
			}
			return errMustPoll
		}
		in, err := newInterrupt(h)
		if err != nil {
			return err
		}
		defer in.free()

		if err := l.beginWait(in); err != nil {
			return err
		}
		ended := make(chan struct{})
		stop := context.AfterFunc(a.ctx, func() {
			defer close(ended)
			in.fire()
		})
		for {
			err = in.run(func(o *windows.Overlapped) error { return lockFile(h, r, o) })
			// Somebody else may cancel all operations on the file.
			if err != errInterrupted || in.wasFired() {
				break
			}
		}
		if !stop() {
			<-ended
		}
		if err = l.endWait(err); err == nil {
			err = l.desc.confirm(fd, r)
		}
		return err
	})
}
