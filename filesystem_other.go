//go:build !linux

package flockctx

// fileSystem names the file system of fd and says whether it is known to be local.
func fileSystem(fd uintptr) (name string, local bool) { return "the file system", false }
