package flock

import "syscall"

// ErrorLockViolation is what LockFileEx returns where another program has the lock.
// No method of this package returns it: TryLock then returns false.
const ErrorLockViolation syscall.Errno = 33
