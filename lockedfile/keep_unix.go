//go:build unix

package lockedfile

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// keep gives the file to what belongs to the file from, whose place it will take: the
// owner and the group where the system allows, the extended attributes (copyAttributes),
// and the mode. A bit that would lend somebody else's rights, because the owner or the
// group could not be kept, is not.
func keep(from, to *os.File) error {
	old, err := from.Stat()
	if err != nil {
		return err
	}
	want, ok := old.Sys().(*syscall.Stat_t)
	if !ok {
		return to.Chmod(old.Mode())
	}
	uid, gid := int(want.Uid), int(want.Gid)
	now, err := to.Stat()
	if err != nil {
		return err
	}
	if !owns(now, uid, gid) {
		err := to.Chown(uid, gid)
		if isForbidden(err) {
			err = to.Chown(-1, gid)
		}
		if err != nil && !isForbidden(err) {
			return err
		}
	}
	if err := copyAttributes(from, to); err != nil {
		return err
	}
	if now, err = to.Stat(); err != nil {
		return err
	}
	mode := old.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	if !owns(now, uid, -1) {
		mode &^= fs.ModeSetuid
	}
	if !owns(now, -1, gid) {
		mode &^= fs.ModeSetgid
	}
	if now.Mode() == mode {
		return nil
	}
	return to.Chmod(mode)
}

// owns reports whether the file of info is of that owner and group; -1 is any.
func owns(info fs.FileInfo, uid, gid int) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && (uid == -1 || int(st.Uid) == uid) && (gid == -1 || int(st.Gid) == gid)
}

// isForbidden reports whether err says that the caller must not give a file to that
// owner. EINVAL is what a user namespace says of one that it does not know.
func isForbidden(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EINVAL)
}
