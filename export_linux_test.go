//go:build !(mips || mipsle || mips64 || mips64le)

package flockctx

// Blocked returns how many goroutines wait in the kernel, or are about to.
func Blocked() int { return int(blocked.Load()) }

// MaxBlocked is how many may.
const MaxBlocked = maxBlocked

// InterruptSignal returns the signal that ends a wait in the kernel.
func InterruptSignal() int { return int(interruptSignal()) }
