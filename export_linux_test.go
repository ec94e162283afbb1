//go:build !(mips || mipsle || mips64 || mips64le)

package flockctx

import "golang.org/x/sys/unix"

// Blocked returns how many goroutines wait in the kernel, or are about to.
func Blocked() int { return int(blocked.Load()) }

// MaxBlocked is how many may.
const MaxBlocked = maxBlocked

// ClearRestart takes SA_RESTART off a signal's handler, as a C library may.
func ClearRestart(sig int) error {
	var act sigaction
	if err := action(unix.Signal(sig), nil, &act); err != nil {
		return err
	}
	act.flags &^= 0x10000000
	return action(unix.Signal(sig), &act, nil)
}
