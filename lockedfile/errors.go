package lockedfile

import (
	"errors"
	"io/fs"
	"os"
)

// A DurabilityError says that the file has its new content, and everybody sees it,
// but that the directory could not be synced: a crash of the machine may bring the
// old content back. A later write of the file that returns nil ends the doubt.
type DurabilityError struct {
	Path string // as given by the caller
	Err  error  // the system's
}

func (e *DurabilityError) Error() string {
	return "sync the directory of " + e.Path + ": " + e.Err.Error() + " (the file has its new content, which a crash of the machine may undo)"
}

// Unwrap returns e.Err.
func (e *DurabilityError) Unwrap() error { return e.Err }

// errChanged: the target is not the file any more that was locked.
var errChanged = errors.New("somebody without its lock created, replaced or removed the file meanwhile")

// errRace: another writer was faster; look again. It does not leave the package.
var errRace = errors.New("race")

// pathError says which step failed on the caller's path, whatever name the step used.
func pathError(op, path string, err error) error {
	return &fs.PathError{Op: op, Path: path, Err: cause(err)}
}

// cause returns err without the operation and the names that package os put around it.
func cause(err error) error {
	switch e := err.(type) {
	case *fs.PathError:
		return e.Err
	case *os.LinkError:
		return e.Err
	case *os.SyscallError:
		return e.Err
	}
	return err
}
