//go:build !linux

package flockctx_test

// There is no portable way to count; the tests that do are for Linux.
func countDescriptors() int   { return 0 }
func listDescriptors() string { return "" }
func countThreads() int       { return 0 }
