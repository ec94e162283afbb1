package sys

import "golang.org/x/sys/unix"

// Tickets are bytes far behind the end of any file, each locked by one that waits in line
// (fcntl(2), open file description locks). Their offsets are times of CLOCK_MONOTONIC,
// which all processes of a machine share, so their order is that of arrival.
const (
	firstTicket = 1 << 61
	endTickets  = 1 << 62
)

// CanQueue returns an error that matches errors.ErrUnsupported where tickets do not work.
func (d *Descriptor) CanQueue() error {
	if !d.IsLocal() {
		return Unsupported("Fair needs a local file system, where all processes are of this machine")
	}
	err := d.control(func(fd uintptr) error {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY {
			err = Unsupported("Fair needs the file open for writing")
		}
		return err
	})
	return err
}

// TakeTicket gets in line.
func (d *Descriptor) TakeTicket() (ticket int64, err error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, err
	}
	for ticket = firstTicket + now.Nano(); ; ticket++ {
		if err = d.Lock(Request{OFD: true, Start: ticket, Length: 1}); err != ErrBusy {
			return ticket, err
		}
	}
}

// DropTicket gets out of line.
func (d *Descriptor) DropTicket() error {
	return d.Lock(Request{Op: Unlock, OFD: true, Start: firstTicket, Length: endTickets - firstTicket})
}

// WaitTicket returns a request that is granted once the ticket is dropped.
func WaitTicket(ticket int64) Request {
	return Request{OFD: true, Shared: true, Start: ticket, Length: 1}
}

// AnyTicket reports whether somebody else is in line.
func (d *Descriptor) AnyTicket() (bool, error) {
	_, ok, err := d.ticketIn(firstTicket, endTickets)
	return ok, err
}

// LastTicket returns the last ticket before end that another one has. The kernel names
// some one of several, so it is asked again about those behind that.
func (d *Descriptor) LastTicket(end int64) (last int64, ok bool, err error) {
	for start := int64(firstTicket); start < end; start = last + 1 {
		ticket, found, err := d.ticketIn(start, end)
		if err != nil || !found {
			return last, ok, err
		}
		last, ok = ticket, true
	}
	return last, ok, nil
}

// ticketIn returns some ticket of another one from start up to end.
func (d *Descriptor) ticketIn(start, end int64) (ticket int64, ok bool, err error) {
	const getlk = 36 // F_OFD_GETLK
	lk := unix.Flock_t{Type: unix.F_RDLCK, Start: start, Len: end - start}
	err = d.control(func(fd uintptr) error {
		return retry(func() error { return unix.FcntlFlock(fd, getlk, &lk) })
	})
	if err == unix.EINVAL || err == unix.ENOSYS {
		err = &unsupportedError{"Fair needs open file description locks", err}
	}
	return max(lk.Start, start), err == nil && lk.Type != unix.F_UNLCK, err
}
