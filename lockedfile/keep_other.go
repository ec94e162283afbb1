//go:build !unix

package lockedfile

import "os"

// keep does nothing: on Windows a file has the security descriptor that its directory
// gives it, and one that is read-only cannot be replaced.
func keep(from, to *os.File) error { return nil }
