// Package syscallstep runs a command step by step, from one system call to the next,
// for tests of what a crash or an error at each of them does. It works on Linux.
//
// Only the command's first thread is followed. The command says with [Mark], on that
// thread, where the steps begin and where they end; a Go program keeps its main
// goroutine there by runtime.LockOSThread in an init function.
package syscallstep
