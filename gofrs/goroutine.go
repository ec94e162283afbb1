package flock

import (
	"bytes"
	"runtime"
	"strconv"
)

// A goroutine is the number of one, which no later one of the process has.
//
// A lock that "Lock returns nil if it is held" and "one goroutine at a time" both hold
// for must know who asks. The runtime tells that only in the heading of a stack trace,
// "goroutine 7 [running]:", for 1.5 µs, or 7 µs where 20 calls are on the stack. If it
// ever stops doing so, all goroutines are number 0, and share the lock that one of them
// took, as they do with gofrs/flock.
type goroutine uint64

// self returns the calling goroutine.
func self() goroutine {
	var buf [40]byte
	trace := buf[:runtime.Stack(buf[:], false)]
	trace, _ = bytes.CutPrefix(trace, []byte("goroutine "))
	number, _, _ := bytes.Cut(trace, []byte(" "))
	n, _ := strconv.ParseUint(string(number), 10, 64)
	return goroutine(n)
}
