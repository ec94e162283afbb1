//go:build !(linux && (amd64 || arm64 || riscv64))

package sys

import "io/fs"

// Open and Verify are made faster where it can be done.

// Open opens path with the flag and permissions of os.OpenFile. The error is the
// system's, or ErrBusy where a lease of another process has to be broken first, or a
// removed file keeps its name for the moment. What path names is refused unless it is a
// file or a directory.
func Open(path string, flag int, perm fs.FileMode) (Descriptor, error) {
	return openAny(path, flag, perm)
}

// Verify returns nil if path names the open file, ErrStale if it names another one or
// none, and another error where that cannot be told.
func (d *Descriptor) Verify(path string) error { return d.verify(path) }
