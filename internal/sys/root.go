package sys

import (
	"errors"
	"io/fs"
	"os"
)

// OpenIn is Open for a path in root.
func OpenIn(root *os.Root, path string, flag int, perm fs.FileMode) (Descriptor, error) {
	f, err := root.OpenFile(path, flag|rootFlags, perm)
	if err != nil && errors.Is(err, errAgain) {
		err = ErrBusy
	}
	if err != nil {
		return Descriptor{}, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() && !fi.IsDir() {
		err = Unsupported("is neither a file nor a directory; only those can be locked")
	}
	var d Descriptor
	if err == nil {
		d, err = Borrow(f)
	}
	if err == nil && fi.IsDir() {
		err = d.kind.refusesDirectories()
	}
	if err != nil {
		f.Close()
		return Descriptor{}, err
	}
	return d, nil
}

// CreateIn is Create for a path in root, but others may see the file before it has its
// permissions.
func CreateIn(root *os.Root, path string, flag int, perm fs.FileMode) (Descriptor, error) {
	d, err := OpenIn(root, path, flag|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return d, err
	}
	if err := d.file.Chmod(perm); err != nil {
		root.Remove(path)
		d.Close()
		return Descriptor{}, err
	}
	return d, nil
}

// VerifyIn is Verify for a path in root, in which the open file was opened.
func (d *Descriptor) VerifyIn(root *os.Root, path string) error {
	fi, err := root.Stat(path)
	if err != nil {
		if namesNone(err) {
			return ErrStale
		}
		return err
	}
	own, err := d.file.Stat()
	switch {
	case errors.Is(err, fs.ErrClosed):
		return fs.ErrClosed
	case err != nil:
		return err
	case !os.SameFile(own, fi):
		return ErrStale
	}
	return nil
}
