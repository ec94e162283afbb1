package sys

import (
	"fmt"
	"hash/maphash"

	"golang.org/x/sys/unix"
)

// A kind is a sort of file system that has to be dealt with in a way of its own.
type kind uint8

const (
	unknown kind = iota // not looked at, or not known
	local               // locks in the kernel itself, inode numbers are unique
	fuse                // as the daemon does it
	network             // on a server
	nfs
	cifs
)

type fileSystem struct {
	name string
	kind kind
}

// fileSystems are the numbers of statfs(2) and linux/magic.h.
var fileSystems = map[uint32]fileSystem{
	0xef53:     {"ext4", local},
	0x58465342: {"xfs", local},
	0x9123683e: {"btrfs", local},
	0x01021994: {"tmpfs", local},
	0x858458f6: {"ramfs", local},
	0x794c7630: {"overlay", local},
	0xf2f52010: {"f2fs", local},
	0xca451a4e: {"bcachefs", local},
	0x2fc12fc1: {"zfs", local},
	0x4d44:     {"vfat", local},
	0x2011bab0: {"exfat", local},
	0x7366746e: {"ntfs3", local},
	0xe0f5e1e2: {"erofs", local},
	0x73717368: {"squashfs", local},
	0x9660:     {"iso9660", local},
	0x15013346: {"udf", local},
	0x52654973: {"reiserfs", local},
	0x3153464a: {"jfs", local},
	0x3434:     {"nilfs2", local},
	0x72b6:     {"jffs2", local},
	0x24051905: {"ubifs", local},
	0x958458f6: {"hugetlbfs", local},
	0x9fa0:     {"proc", local},
	0x62656572: {"sysfs", local},
	0x27e0eb:   {"cgroup", local},
	0x63677270: {"cgroup2", local},
	0xf15f:     {"ecryptfs", local},
	0x65735546: {"fuse", fuse},
	0x6a656a63: {"virtiofs", fuse},
	0x6969:     {"nfs", nfs},
	0xff534d42: {"cifs", cifs},
	0xfe534d42: {"smb2", cifs},
	0x517b:     {"smb", cifs},
	0x01021997: {"9p", network},
	0x00c36400: {"ceph", network},
	0x5346414f: {"afs", network},
	0x6b414653: {"kafs", network},
	0x01161970: {"gfs2", network},
	0x7461636f: {"ocfs2", network},
	0x0bd00bd0: {"lustre", network},
	0x786f4256: {"vboxsf", network},
	0xbacbacbc: {"vmhgfs", network},
	0x19830326: {"fhgfs", network},
}

// fileSystemOf says on what file system fd is.
func fileSystemOf(fd uintptr) fileSystem {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(fd), &st); err != nil {
		// A daemon that knows no statfs(2), or a filter that forbids it. What is not
		// known of a file system is assumed to be as bad as it can be.
		return fileSystem{"the file system", fuse}
	}
	magic := uint32(st.Type)
	if f, ok := fileSystems[magic]; ok {
		return fileSystem{"file system " + f.name, f.kind}
	}
	return fileSystem{name: fmt.Sprintf("file system %#x", magic)}
}

// kindOf returns the kind of the file system that fd is on, whose device number is dev.
// One on a disk has a number with a major part, and is not looked at here: it is local,
// but for FUSE on a disk, whose inodes are those of the disk all the same.
func kindOf(fd uintptr, dev uint64) kind {
	if unix.Major(dev) != 0 {
		return unknown
	}
	return fileSystemOf(fd).kind
}

// hasHandles reports whether inode numbers of the kind need not be unique.
func (k kind) hasHandles() bool { return k >= fuse }

// deniesBusy reports whether a lock that is taken is "permission denied".
func (k kind) deniesBusy() bool { return k == cifs }

// addsLocks reports whether a lock in another mode is added to the one that the
// descriptor has, instead of replacing it.
func (k kind) addsLocks() bool { return k == cifs }

// refusesDirectories returns an error where the lock of a directory would be none: the
// client keeps it to itself.
func (k kind) refusesDirectories() error {
	if k == nfs || k == cifs {
		return Unsupported("is a directory on a network file system, where other clients would not see the lock")
	}
	return nil
}

// IsLocal reports whether the file is on a file system where an interrupt ends a wait
// in the kernel at once.
func (d *Descriptor) IsLocal() bool {
	if d.kind == unknown {
		d.control(func(fd uintptr) error {
			d.kind = fileSystemOf(fd).kind
			return nil
		})
	}
	return d.kind == local
}

// TellsFilesApart reports whether files of one FileID are one file for certain.
func (d *Descriptor) TellsFilesApart() bool { return !d.kind.hasHandles() || d.ID.Handle != 0 }

// refresh has the client of a network file system ask the server what the path names,
// instead of looking into its own cache: statx(2) of the directory with
// AT_STATX_FORCE_SYNC. A file that no name is left of is gone, whatever the cache says.
// A directory further up that was renamed goes unnoticed until the cache expires.
func (d *Descriptor) refresh(path string) error {
	if d.kind < network {
		return nil
	}
	if d.kind == nfs {
		var st unix.Stat_t
		err := d.control(func(fd uintptr) error { return fstat(fd, &st) })
		if err == unix.ESTALE || err == nil && st.Nlink == 0 {
			return ErrStale
		}
	}
	ask(dirOf(path))
	if d.kind == cifs { // which takes the name's inode from its cache all the same
		ask(path)
	}
	return nil
}

// ask has the client ask the server about path. Where that fails, what comes next fails
// too.
func ask(path string) {
	var stx unix.Statx_t
	unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_FORCE_SYNC, unix.STATX_MTIME|unix.STATX_CTIME, &stx)
}

// reopens returns what the error err of opening path means on CIFS: whether it is to be
// opened again at once, since the file that the client knows was replaced at the server,
// or else that it is busy, since a file that was removed keeps its name until it is
// closed, as on Windows.
func reopens(path string, flag int, err error) (again bool, meaning error) {
	if err != unix.EINVAL && (err != unix.ENOENT || flag&unix.O_CREAT == 0) {
		return false, err
	}
	var st unix.Statfs_t
	if unix.Statfs(dirOf(path), &st) != nil || fileSystems[uint32(st.Type)].kind != cifs {
		return false, err
	}
	if err == unix.EINVAL {
		ask(path)
		return true, err
	}
	return false, ErrBusy
}

// lookError returns what the error err of a look at a path of a file of kind k means: on
// CIFS, where a name is being removed or replaced, it is a refusal for a moment.
func (k kind) lookError(err error) error {
	if k == cifs && (err == unix.EACCES || err == unix.EIO) {
		return unix.ESTALE
	}
	return err
}

// CanLockRanges returns an error that matches errors.ErrUnsupported where byte ranges of
// one client do not exclude each other.
func (d *Descriptor) CanLockRanges() error {
	if d.kind == cifs {
		return Unsupported("file system cifs does not keep byte ranges of one machine apart; use Mechanism BSD")
	}
	return nil
}

// dirOf returns the directory of path, by name alone.
func dirOf(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:i+1]
		}
	}
	return "."
}

// createWhole creates a file that has no name until it has its permissions.
func createWhole(path string, flag int, mode uint32) (uintptr, error) {
	fd, err := unix.Open(dirOf(path), flag&^(unix.O_CREAT|unix.O_EXCL)|unix.O_TMPFILE|openFlags, mode)
	if err != nil {
		return 0, unix.EOPNOTSUPP
	}
	if err = unix.Fchmod(fd, mode); err == nil {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		Close(uintptr(fd))
	}
	return uintptr(fd), err
}

// isPathOnly reports whether fd was opened with O_PATH.
func isPathOnly(fd uintptr) bool {
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	return err == nil && flags&unix.O_PATH != 0
}

// sameDescription reports whether two descriptors of this process are known to be of
// the same open file description: kcmp(2).
func sameDescription(a, b uintptr) bool {
	const kcmpFile = 0
	if a == b {
		return true
	}
	pid := uintptr(unix.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, a, b, 0)
	return errno == 0 && r == 0
}

const (
	atEmptyPath = unix.AT_EMPTY_PATH
	atFollow    = unix.AT_SYMLINK_FOLLOW
)

var handleSeed = maphash.MakeSeed()

// handleOf returns a hash of the handle of the file that path, relative to dir, names,
// or 0 where there is none to be had.
func handleOf(dir int, path string, flags int) uint64 {
	h, _, err := unix.NameToHandleAt(dir, path, flags)
	if err != nil {
		return 0
	}
	return max(maphash.Bytes(handleSeed, h.Bytes())^uint64(uint32(h.Type())), 1)
}
