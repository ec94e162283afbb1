package interrupt_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/flockctx/flockctx/internal/interrupt"
	"golang.org/x/sys/windows"
)

// What waits for LockFileEx is tested on another overlapped operation too, which
// wine has: to wait for the client of a pipe.
func TestOverlappedOperation(t *testing.T) {
	pipes := 0
	listen := func(t *testing.T) (windows.Handle, string) {
		pipes++
		path := fmt.Sprintf(`\\.\pipe\flockctx-test-%d-%d`, os.Getpid(), pipes)
		name, err := windows.UTF16PtrFromString(path)
		if err != nil {
			t.Fatal(err)
		}
		h, err := windows.CreateNamedPipe(name, windows.PIPE_ACCESS_DUPLEX|windows.FILE_FLAG_OVERLAPPED, 0, 1, 64, 64, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { windows.CloseHandle(h) })
		return h, path
	}
	connect := func(h windows.Handle) func(*windows.Overlapped) error {
		return func(o *windows.Overlapped) error { return windows.ConnectNamedPipe(h, o) }
	}
	dial := func(path string) (windows.Handle, error) {
		name, err := windows.UTF16PtrFromString(path)
		if err != nil {
			return 0, err
		}
		return windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING, 0, 0)
	}
	operation := func(t *testing.T, h windows.Handle) *interrupt.Call {
		op, err := interrupt.New(h)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(op.Free)
		return op
	}

	t.Run("granted", func(t *testing.T) {
		h, path := listen(t)
		op := operation(t, h)
		done := make(chan error)
		go func() { done <- op.Run(connect(h)) }()
		c, err := dial(path)
		if err != nil {
			t.Fatal(err)
		}
		defer windows.CloseHandle(c)
		if err := <-done; err != nil && err != windows.ERROR_PIPE_CONNECTED {
			t.Error(err)
		}
		op.Fire() // too late, and harmless
	})
	t.Run("cancelled", func(t *testing.T) {
		h, path := listen(t)
		op := operation(t, h)
		done := make(chan error)
		begun := make(chan struct{})
		go func() {
			done <- op.Run(func(o *windows.Overlapped) error {
				defer close(begun)
				return connect(h)(o)
			})
		}()
		<-begun
		op.Fire()
		if err := <-done; err != interrupt.ErrInterrupted {
			t.Error(err)
		}
		if err := op.Run(connect(h)); err != interrupt.ErrInterrupted {
			t.Errorf("after Fire: %v", err)
		}
		// The pipe still works: nothing was left under way on it.
		op = operation(t, h)
		go func() { done <- op.Run(connect(h)) }()
		c, err := dial(path)
		if err != nil {
			t.Fatal(err)
		}
		defer windows.CloseHandle(c)
		if err := <-done; err != nil && err != windows.ERROR_PIPE_CONNECTED {
			t.Error(err)
		}
	})
	t.Run("cancelled while granted", func(t *testing.T) {
		var granted, interrupted int
		for range 200 {
			h, path := listen(t)
			op := operation(t, h)
			done := make(chan error)
			go func() { done <- op.Run(connect(h)) }()
			fired := make(chan struct{})
			go func() {
				op.Fire()
				close(fired)
			}()
			c, derr := dial(path)
			err := <-done
			<-fired
			switch {
			case err == interrupt.ErrInterrupted:
				interrupted++
			case derr != nil || err != nil && err != windows.ERROR_PIPE_CONNECTED:
				t.Errorf("%v; client: %v", err, derr)
			default:
				granted++
			}
			if derr == nil {
				windows.CloseHandle(c)
			}
		}
		t.Logf("%d granted, %d cancelled", granted, interrupted)
	})
}
