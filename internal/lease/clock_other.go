//go:build !linux

package lease

import "time"

// Now reads Go's monotonic clock. Where it stops while the machine is suspended, a
// lapsed lease is noticed by the first answer of the server instead.
func Now() Instant { return Instant(time.Since(start)) }
