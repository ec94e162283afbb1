//go:build windows

package flockctx

import "golang.org/x/sys/windows"

// An Operation is the overlapped operation of a wait in the kernel.
type Operation = interrupt

func NewOperation(h windows.Handle) (*Operation, error) { return newInterrupt(h) }

func (in *interrupt) Run(begin func(*windows.Overlapped) error) error { return in.run(begin) }
func (in *interrupt) Fire()                                           { in.fire() }
func (in *interrupt) Free()                                           { in.free() }

var ErrInterrupted = errInterrupted

// Blocked returns how many goroutines wait in the kernel: none under wine.
func Blocked() int { return int(blocked.Load()) }

func IsOverlapped(h windows.Handle) bool { return isOverlapped(h) }

// NTOpen returns the NTSTATUS of opening path.
func NTOpen(path string) error {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	return ntOpen(name)
}
