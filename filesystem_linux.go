package flockctx

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// localFileSystems have flock(2) and fcntl(2) locks in the kernel itself, where a
// signal ends the wait for them. Numbers of statfs(2) and linux/magic.h.
var localFileSystems = map[uint32]string{
	0xef53:     "ext4",
	0x58465342: "xfs",
	0x9123683e: "btrfs",
	0x01021994: "tmpfs",
	0x858458f6: "ramfs",
	0x794c7630: "overlay",
	0xf2f52010: "f2fs",
	0xca451a4e: "bcachefs",
	0x2fc12fc1: "zfs",
	0x4d44:     "vfat",
	0x2011bab0: "exfat",
	0x7366746e: "ntfs3",
	0xe0f5e1e2: "erofs",
	0x73717368: "squashfs",
	0x9660:     "iso9660",
	0x15013346: "udf",
	0x52654973: "reiserfs",
	0x3153464a: "jfs",
	0x3434:     "nilfs2",
	0x72b6:     "jffs2",
	0x24051905: "ubifs",
	0x958458f6: "hugetlbfs",
	0x9fa0:     "proc",
	0x62656572: "sysfs",
	0x27e0eb:   "cgroup",
	0x63677270: "cgroup2",
	0xf15f:     "ecryptfs",
}

var otherFileSystems = map[uint32]string{
	0x65735546: "fuse",
	0x6969:     "nfs",
	0xff534d42: "cifs",
	0xfe534d42: "smb2",
	0x517b:     "smb",
	0x01021997: "9p",
	0x00c36400: "ceph",
	0x5346414f: "afs",
	0x6b414653: "kafs",
	0x01161970: "gfs2",
	0x7461636f: "ocfs2",
	0x0bd00bd0: "lustre",
	0x6a656a63: "virtiofs",
	0x786f4256: "vboxsf",
	0xbacbacbc: "vmhgfs",
	0x19830326: "fhgfs",
}

// fileSystem names the file system of fd and says whether it is known to be local.
func fileSystem(fd uintptr) (name string, local bool) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(fd), &st); err != nil {
		return "the file system", false
	}
	magic := uint32(st.Type)
	if name, ok := localFileSystems[magic]; ok {
		return "file system " + name, true
	}
	if name, ok := otherFileSystems[magic]; ok {
		return "file system " + name, false
	}
	return fmt.Sprintf("file system %#x", magic), false
}
