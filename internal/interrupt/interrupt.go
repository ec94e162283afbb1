// Package interrupt makes a system call that waits, and lets another goroutine end it.
// It knows no lock and no context.
//
// A [Call] is for one wait. Its owner calls Run, once, which makes the system call on
// the owner's own goroutine. Any goroutine may call Fire, before Run, while it runs or
// after it: from then on the system call ends, or does not begin. Fire returns when
// that is so. When Run has returned, nothing of the wait is left: no signal is on its
// way to the thread, no operation of the kernel's is under way. The one who fires and
// the grant may come together: Run then returns what the system call returned.
//
// On Linux a signal ends the call, on Windows CancelIoEx; elsewhere [Possible] is
// false. It is false, too, where the signal cannot be sent, does not arrive, or does
// not interrupt: in a sandbox, an emulator, or a program with a handler of its own.
// Such a wait must not be begun; its owner polls.
package interrupt

import "errors"

var (
	// ErrInterrupted says that the system call ended without what it waited for.
	ErrInterrupted = errors.New("interrupted")

	// ErrImpossible says that the system call was not made, because nothing could
	// end it.
	ErrImpossible = errors.New("a wait in the kernel cannot be ended here")
)
