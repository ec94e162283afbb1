package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/semaphore"
)

// slotVariable has the number of the slot, for the command.
const slotVariable = "FLOCKCTX_SLOT"

// slot takes one of the slots of the file that was named.
func (l *lock) slot(ctx context.Context) int {
	name := l.options.path
	// Without O_CREATE at first: where a directory is sticky, such as /tmp, that is
	// refused on a file of somebody else.
	r := &flockctx.Options{Flag: os.O_RDWR, Perm: 0o666}
	p, err := semaphore.TryAcquire(name, l.slots, r)
	if errors.Is(err, fs.ErrNotExist) {
		r.Flag |= os.O_CREATE
		p, err = semaphore.TryAcquire(name, l.slots, r)
	}
	if err != nil {
		code := l.wait(ctx, err, []string{name}, func(ctx context.Context) error {
			p, err = semaphore.Acquire(ctx, name, l.slots, r)
			return err
		})
		if code != exitOK || l.ended {
			return code
		}
	}
	l.files = []*os.File{p.File()}
	if err := os.Setenv(slotVariable, strconv.Itoa(p.Slot())); err != nil {
		l.say("%v", err)
		return exitSystem
	}
	return exitOK
}

// what is what the options ask for, in messages, and wanted with the files that it is on.
func (l *lock) what() string {
	if l.slots > 0 {
		return "a slot"
	}
	return "lock"
}

func (l *lock) wanted(paths string) string {
	if l.slots > 0 {
		return "a slot of " + printable(paths)
	}
	return "lock on " + printable(paths)
}
