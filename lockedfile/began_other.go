//go:build !linux

package lockedfile

import "time"

// systemBegan returns the beginning of time: it is known on Linux only.
func systemBegan() time.Time { return time.Time{} }
