package flockctx

import "github.com/flockctx/flockctx/internal/sys"

// With Options.Fair the processes stand in line for a lock: first come, first served.
//
// Who has to wait takes a ticket: a byte of the file, far behind its end, that it keeps
// locked while it waits. The offset is the time of its arrival on the clock that all
// processes of the machine share. It waits until the last one before it has dropped its
// ticket, and looks again, until there is none; then it waits for the lock itself, and
// drops its ticket once it has that. Who finds nobody in line, and the lock free, takes
// it without a ticket.
//
//	what happens                                 who goes on
//	the first in line gets the lock              the next: its ticket's release wakes it
//	one in line is killed, or its context ends   those behind it: the kernel, or the end of
//	                                             the call, unlocks its byte
//	one in line is stopped (SIGSTOP)             those behind it wait as long as it is
//	two arrive in the same nanosecond            the second takes the next byte
//	one took the time, and its ticket late       those who have looked meanwhile overtake it;
//	                                             the kernel then decides between the two
//	a program that does not ask for Fair         the kernel decides between it and the first
//
// Nothing is counted or written down, so nothing can be left behind: a ticket that nobody
// holds is no ticket.

// tryFair is the try for the lock of one that must not overtake those in line.
func (l *Flock) tryFair(r sys.Request) error {
	if line, err := l.desc.AnyTicket(); err != nil {
		return err
	} else if line {
		return errBusy
	}
	return l.desc.Lock(r)
}

// awaitFair waits in line, as the outsider o, and then for the lock of r.
func (l *Flock) awaitFair(o *outsider, a *attempt, closed <-chan struct{}, r sys.Request) error {
	ticket, err := l.desc.TakeTicket()
	if err != nil {
		return err
	}
	defer l.desc.DropTicket()
	for {
		before, ok, err := l.desc.LastTicket(ticket)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		turn := sys.WaitTicket(before)
		if err := l.awaitAs(o, a, closed, turn); err != nil {
			return err
		}
		turn.Op = sys.Unlock
		if err := l.desc.Lock(turn); err != nil {
			return err
		}
	}
	if err := l.desc.Lock(r); err != errBusy {
		return err
	}
	return l.awaitAs(o, a, closed, r)
}
