//go:build !windows

package lockedfile

import (
	"errors"
	"io/fs"
	"os"
)

// lockItself: a file that is open can be replaced, so the lock is on the file itself.
const lockItself = true

// publish gives the target's name to the file named name, of which info is, in one
// step; the other name may stay. On an error the target is what it was; errChanged if
// that is not what was locked.
func (t *target) publish(name string, info fs.FileInfo) error {
	if err := t.unchanged(); err != nil {
		return err
	}
	err := t.move(name)
	if err == nil {
		return nil
	}
	// A server that gets a request twice, because its first answer was lost, refuses it
	// the second time: what counts is what is there.
	if now, lerr := lstat(t.dir, t.name); lerr == nil && os.SameFile(now, info) {
		return nil
	}
	// With ErrNotExist, another writer, who has the lock by now, removed the new content.
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return errChanged
	}
	return pathError("rename to", t.path, err)
}

func (t *target) move(name string) error {
	if t.old == nil {
		// Somebody who locks the target itself, as other programs do, may have created
		// it by now: rename(2) would replace that. Where there are no hard links, the
		// look before has to do.
		err := again(func() error { return t.dir.Link(name, t.name) })
		if err == nil || errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return again(func() error { return t.dir.Rename(name, t.name) })
}

// sync has the new name reach the disk.
func (t *target) sync() error { return t.folder.Sync() }
