//go:build linux

package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now reads CLOCK_BOOTTIME, which counts the time that the machine was suspended.
// Go's monotonic clock stops meanwhile, and a server's leases do not.
func Now() Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return Instant(time.Since(start)) // a kernel or sandbox without it
	}
	return Instant(ts.Nano())
}
