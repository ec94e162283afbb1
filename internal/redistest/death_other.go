//go:build unix && !linux

package redistest

import "syscall"

// endWithTest does nothing here: a server outlives a test that is killed.
func endWithTest(*syscall.SysProcAttr) {}
