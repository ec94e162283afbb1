//go:build !windows

package lockedfile

import (
	"errors"
	"io/fs"
)

// lockItself: a file that is open can be replaced, so the lock is on the file itself.
const lockItself = true

// publish gives the target's name to the file named content, in one step. On an error
// the name is of what it was; errChanged if that is not what was locked.
func (t *target) publish(content string) error {
	if !t.current() {
		return errChanged
	}
	replaced.Add(1)
	if t.old == nil {
		// Somebody who locks the target itself, as other programs do, may have created
		// it by now: rename(2) would replace that. Where there are no hard links, the
		// look above has to do.
		err := t.dir.Link(content, t.name)
		if err == nil {
			t.dir.Remove(content)
			return nil
		}
		if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
			return errChanged
		}
	}
	err := t.dir.Rename(content, t.name)
	if errors.Is(err, fs.ErrNotExist) { // another writer, who has the lock by now, removed it
		return errChanged
	}
	if err != nil {
		return pathError("rename to", t.path, err)
	}
	return nil
}

// sync has the new name reach the disk.
func (t *target) sync() error { return t.folder.Sync() }
