//go:build !linux

package sys

import "runtime"

// CanQueue returns an error that matches errors.ErrUnsupported: there are no tickets here.
func (d *Descriptor) CanQueue() error {
	return Unsupported("%s cannot queue processes (Fair)", runtime.GOOS)
}

// AnyTicket, TakeTicket, DropTicket and LastTicket are not called then.
func (d *Descriptor) AnyTicket() (bool, error)                  { return false, d.CanQueue() }
func (d *Descriptor) TakeTicket() (int64, error)                { return 0, d.CanQueue() }
func (d *Descriptor) DropTicket() error                         { return d.CanQueue() }
func (d *Descriptor) LastTicket(end int64) (int64, bool, error) { return 0, false, d.CanQueue() }

// WaitTicket is not called either.
func WaitTicket(ticket int64) Request { return Request{} }
