//go:build !linux && !windows

package sys

// IsLocal reports whether the file is on a file system where an interrupt ends a wait
// in the kernel at once.
func (d *Descriptor) IsLocal() bool { return false }
