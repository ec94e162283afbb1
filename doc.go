// Package flockctx locks files between processes and between the goroutines of
// one process, and lets a [context.Context] say how long to wait.
//
// [Lock] waits in the kernel where it can, without polling. It returns when its
// context ends, mostly within a fraction of a millisecond, and leaves no goroutine,
// descriptor or lock behind. The lock is on the file that the path names when Lock
// returns, also where the file was removed or replaced while it waited.
//
// Locks are advisory: they bind only programs that ask for them, such as those
// that use this package, flock(1) or flock(2). The kernel drops a lock when the
// last descriptor of its open file is closed, so a crashed or killed holder frees
// it at once, and a lock file that remains on disk means nothing.
//
// On network file systems the lock is as good as the server's: NFS turns it into
// a byte-range lock of the client, and some servers cannot lock at all, which
// Lock reports as an error that matches [errors.ErrUnsupported]. The file
// docs/semantics.md lists what holds on which system.
package flockctx
