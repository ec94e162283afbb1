// Package store keeps handles on lock files, and tells what a call of each gave.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/gofrs/flock"
)

// A Store has a handle for each of its keys.
type Store struct {
	handles map[string]*flock.Flock
}

// Open makes a store of no handles.
func Open() *Store { return &Store{handles: map[string]*flock.Flock{}} }

// Add makes a handle.
func (s *Store) Add(key, path string, opts ...flock.Option) {
	if len(opts) == 0 {
		s.handles[key] = flock.NewFlock(path)
		return
	}
	s.handles[key] = flock.New(path, opts...)
}

// Plain and the others are options of Add.
var (
	ReadOnly = flock.SetFlag(os.O_RDONLY)
	Writable = flock.SetFlag(os.O_CREATE | os.O_RDWR)
	Open644  = flock.SetPermissions(0o644)
)

// Locked reports in which modes the handle is locked.
func (s *Store) Locked(key string) (exclusive, shared bool) {
	l := s.handles[key]
	return l.Locked(), l.RLocked()
}

// Release releases what the handle holds.
func (s *Store) Release(key string) error { return s.handles[key].Unlock() }

// End releases everything.
func (s *Store) End() {
	for _, l := range s.handles {
		defer l.Unlock()
	}
}

// Call makes a call and returns what came of it.
func (s *Store) Call(key, call string) string {
	l := s.handles[key]
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	short, cancel := context.WithTimeout(context.Background(), 200*time.Microsecond)
	defer cancel()
	long := context.Background()
	switch call {
	case "Lock":
		return result(l.Lock())
	case "RLock":
		return result(l.RLock())
	case "TryLock":
		ok, err := l.TryLock()
		return fmt.Sprint(ok, " ", result(err))
	case "TryRLock":
		ok, err := l.TryRLock()
		return fmt.Sprint(ok, " ", result(err))
	case "TryLockContext":
		ok, err := l.TryLockContext(long, time.Second)
		return fmt.Sprint(ok, " ", result(err))
	case "TryRLockContext":
		ok, err := l.TryRLockContext(long, time.Second)
		return fmt.Sprint(ok, " ", result(err))
	case "TryLockContext short":
		ok, err := l.TryLockContext(short, 100*time.Microsecond)
		return fmt.Sprint(ok, " ", result(err))
	case "TryRLockContext short":
		ok, err := l.TryRLockContext(short, 100*time.Microsecond)
		return fmt.Sprint(ok, " ", result(err))
	case "TryLockContext ended":
		ok, err := l.TryLockContext(ended, time.Second)
		return fmt.Sprint(ok, " ", result(err))
	case "TryRLockContext ended":
		ok, err := l.TryRLockContext(ended, time.Second)
		return fmt.Sprint(ok, " ", result(err))
	case "Unlock":
		if err := l.Unlock(); err != nil {
			return result(err)
		}
		return "nil"
	case "Close":
		return result(l.Close())
	case "Stat":
		fi, err := l.Stat()
		if err != nil {
			return result(err)
		}
		return fmt.Sprint(fi.Name(), " ", fi.Mode(), " ", fi.Size())
	case "names":
		return fmt.Sprint(l.Path() == l.String(), " ", l.Path() == fmt.Sprint(l))
	}
	panic(call)
}

// result is what programs see in an error.
func result(err error) string {
	switch {
	case err == nil:
		return "nil"
	case err == context.Canceled, err == context.DeadlineExceeded:
		return err.Error()
	case errors.Is(err, fs.ErrNotExist):
		return "not there"
	case errors.Is(err, fs.ErrPermission):
		return "permission"
	}
	return "other error"
}
