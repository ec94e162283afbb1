package interrupt

import (
	"runtime"
	"sync"

	"golang.org/x/sys/windows"
)

// A Call is one overlapped operation on an open file. It is made by New.
//
// The kernel writes to the OVERLAPPED structure until the operation has ended, also
// after it was cancelled: so the structure is pinned, and Run returns only then.
type Call struct {
	handle     windows.Handle
	overlapped windows.Overlapped
	event      windows.Handle
	pin        runtime.Pinner

	mu      sync.Mutex // guards the rest, and is held while an operation begins or is cancelled
	fired   bool       // somebody wants the operation to end
	pending bool       // the operation may be under way
}

// New returns a Call on the file h, which must be open for overlapped operations. It
// is given back by Free.
func New(h windows.Handle) (*Call, error) {
	event, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return nil, err
	}
	c := &Call{handle: h, event: event}
	c.pin.Pin(c)
	return c, nil
}

// Free is called when Run has returned. Fire may be called still.
func (c *Call) Free() {
	windows.CloseHandle(c.event)
	c.pin.Unpin()
}

// Fire ends the operation that is under way, and keeps a later one from beginning. The
// operation may be granted all the same: whoever called Run is told.
func (c *Call) Fire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fired = true
	if c.pending {
		windows.CancelIoEx(c.handle, &c.overlapped) // ERROR_NOT_FOUND: it has just ended
	}
}

// Fired reports whether Fire was called.
func (c *Call) Fired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fired
}

// Run begins an overlapped operation and waits until it has ended, again where somebody
// else cancelled it, as one can all operations on a file.
func (c *Call) Run(begin func(*windows.Overlapped) error) error {
	// A pending operation is cancelled where the thread that began it exits.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		err := c.once(begin)
		if err == windows.ERROR_OPERATION_ABORTED {
			err = ErrInterrupted
		}
		if err != ErrInterrupted || c.Fired() {
			return err
		}
	}
}

func (c *Call) once(begin func(*windows.Overlapped) error) error {
	c.mu.Lock()
	if c.fired {
		c.mu.Unlock()
		return ErrInterrupted
	}
	// The low-order bit keeps the end of the operation from being queued to a
	// completion port: once File was called, the handle belongs to that of Go's
	// runtime. See GetQueuedCompletionStatus.
	c.overlapped = windows.Overlapped{HEvent: c.event | 1}
	err := begin(&c.overlapped)
	c.pending = err == windows.ERROR_IO_PENDING
	c.mu.Unlock()
	if err != windows.ERROR_IO_PENDING {
		return err
	}
	var n uint32
	err = windows.GetOverlappedResult(c.handle, &c.overlapped, &n, true)
	c.mu.Lock()
	c.pending = false
	c.mu.Unlock()
	return err
}

// Possible reports whether a wait in the kernel can be interrupted. Wine 8 says of an
// overlapped LockFileEx that it is pending, and then that it was granted, which it
// was not.
var Possible = sync.OnceValue(func() bool {
	return windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() != nil
})
