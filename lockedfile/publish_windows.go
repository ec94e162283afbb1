package lockedfile

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/windows"
)

// lockItself: Windows does not replace a file that is open, unless all who have it
// open allow that and the file system knows how. So the lock is on a file beside it.
const lockItself = false

// patience is how long publish waits for others to close the target, which may be an
// indexer or a scanner for viruses.
const patience = 2 * time.Second

// publish gives the target's name to the file named name in one step. On an error the
// target is what it was; errChanged if that is not what was locked.
func (t *target) publish(name string, _ fs.FileInfo) error {
	if err := t.unchanged(); err != nil {
		return err
	}
	flags := uint32(windows.MOVEFILE_WRITE_THROUGH)
	if t.old != nil {
		t.old.Close()
		flags |= windows.MOVEFILE_REPLACE_EXISTING
	}
	folder := t.dir.Name() + string(os.PathSeparator)
	from, err := windows.UTF16PtrFromString(folder + name)
	if err != nil {
		return pathError("rename to", t.path, err)
	}
	to, err := windows.UTF16PtrFromString(folder + t.name)
	if err != nil {
		return pathError("rename to", t.path, err)
	}
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err = windows.MoveFileEx(from, to, flags)
		inUse := err == windows.ERROR_ACCESS_DENIED || err == windows.ERROR_SHARING_VIOLATION
		if !inUse || time.Since(began) > patience {
			break
		}
	}
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return errChanged
	}
	if err != nil {
		return pathError("rename to", t.path, err)
	}
	return nil
}

// sync does nothing: MOVEFILE_WRITE_THROUGH returns when the move is on the disk, and
// a directory cannot be synced.
func (t *target) sync() error { return nil }
