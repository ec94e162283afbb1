//go:build !linux

package sys

import "math"

// MaxThreads returns how many threads this process may have.
func MaxThreads() int { return math.MaxInt32 }
