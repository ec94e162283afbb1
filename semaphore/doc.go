// Package semaphore lets N at a time in, where a lock lets in one: between processes and
// between the goroutines of one process.
//
// [Acquire] takes one of n slots of the file that a path names, and waits as long as its
// context lets it. Each slot has a number that nobody else has meanwhile: that of a GPU,
// a port, a directory to work in. There is no server and no count that could be wrong:
// the kernel has the slots, and takes back those of a process that ends, however it
// ends. The file stays, empty; what else is in it is left alone.
//
// Who waits is served first come, first served, as far as the kernel wakes processes in
// the order in which they came: Linux does. Goroutines of one process queue as those of
// a lock do, see [flockctx.Flock.Lock]. On local file systems of Linux nobody polls.
//
// # How it works
//
// Where there are locks of open file descriptions (Linux, macOS), all are locks of one
// byte each, far behind the end of any file: slot i is the byte slots+i. The byte
// turns+n is the turn of those who want one of n. Each call has an open file of its own.
//
//	state      has            waits for                  ends it
//	queued     –              the turn (flockctx.Lock)   its release, or the context
//	looking    the turn       nothing                    a slot: inside; none: first
//	first      the turn       the bell, a timer          a look: inside; the context
//	inside     its slot       –                          Release, or the end of the process
//
// So of all that wait for one of n slots, in all processes, one is awake to look at the
// slots; the kernel, or the queue of its process, has the others. It gives the turn away
// as soon as it has its slot.
//
// The bell is inotify(7): the last descriptor of an open file was closed, by Release or
// because a process ended. Release unlocks the slot, then closes the file. A child that
// has inherited the file keeps it open, and the bell silent: so where Permit.File was
// called, Release opens the file once more and closes that. (The child of somebody else
// has it too, between fork and exec, and rings the bell when it closes it.)
//
//	race                                        winner
//	a release, and a look that finds no slot    the release: the watch is set before the last
//	                                            look, so either that look or the bell tells
//	the bell of a dying process, and the look   the look may come too early: the kernel rings a
//	                                            moment before it drops the lock. So after a bell
//	                                            without a slot come four more looks, after 1 ms,
//	                                            8, 64 and 512 times as long at most
//	that, and setting the watch                 the bell came before the watch, the lock is dropped
//	                                            after the look: the look of the timer finds it,
//	                                            2 s later; the other slots' bells as usual
//	a slot, and the end of the context          the end: the slot is given back
//	a slot, and the file removed or replaced    the new file: who waited looks at what the path
//	                                            names once it has a slot, and starts again there
//	two turns, of different n                   whom the kernel gives the slot; the other waits on
//	TryAcquire, and who waits                   whom the kernel gives the slot: a TryAcquire in the
//	                                            moment of a hand-over is served first
//
// The timers of the wait are of a second and more, but after a bell in vain. A first
// one that is stopped (SIGSTOP) keeps those behind it waiting until it goes on.
//
// On other file systems the first one looks by trying again, at the intervals of
// Options.Poll; so does one that gets no inotify instance. On systems without such
// locks slot i is a lock of the file path.i, and the turn one of path.turn-n.
package semaphore
