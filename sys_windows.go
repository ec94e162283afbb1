//go:build windows

package flockctx

import (
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// A lock of LockFileEx is mandatory for the bytes that it covers. So the one that
// stands for the file covers a byte that no file can have: the last offset is one
// less. Who locks the whole range of offsets, as Go's own go command does, meets it.
const lockLow, lockHigh = 1<<32 - 1, 1<<31 - 1

// writeRefusals are the errors, besides those of permission, of a file that can
// perhaps be opened for reading.
var writeRefusals = []error{windows.ERROR_WRITE_PROTECT}

// sysOpen opens path with the flag and permissions of os.OpenFile. It does not use
// that, because the file must be shared for deletion: else Remove and log rotation
// would fail as long as somebody waits. The error is the system's, or errBusy where
// the path names a file that is removed but still open.
func sysOpen(path string, flag int, perm fs.FileMode) (descriptor, error) {
	if path == "" {
		return descriptor{}, windows.ERROR_FILE_NOT_FOUND
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return descriptor{}, err
	}
	var access uint32
	switch flag & (windows.O_RDONLY | windows.O_WRONLY | windows.O_RDWR) {
	case windows.O_RDONLY:
		access = windows.GENERIC_READ
	case windows.O_WRONLY:
		access = windows.GENERIC_WRITE
	case windows.O_RDWR:
		access = windows.GENERIC_READ | windows.GENERIC_WRITE
	}
	if flag&windows.O_CREAT != 0 {
		access |= windows.GENERIC_WRITE
	}
	if flag&windows.O_APPEND != 0 {
		// Without FILE_WRITE_DATA every write appends; but with FILE_APPEND_DATA
		// alone the file cannot be locked.
		access &^= windows.GENERIC_WRITE
		access |= windows.FILE_APPEND_DATA | windows.FILE_WRITE_ATTRIBUTES | windows.FILE_WRITE_EA |
			windows.STANDARD_RIGHTS_WRITE | windows.SYNCHRONIZE | windows.FILE_READ_DATA
	}
	// As for os.OpenFile, the upper bits of flag are FILE_FLAG constants.
	attrs := uint32(flag)&0xfff00000 | windows.FILE_FLAG_OVERLAPPED
	if flag&(windows.O_WRONLY|windows.O_RDWR) == 0 {
		attrs |= windows.FILE_FLAG_BACKUP_SEMANTICS // or a directory would be "access denied"
	}
	if flag&windows.O_SYNC != 0 {
		attrs |= windows.FILE_FLAG_WRITE_THROUGH
	}
	disposition := uint32(windows.OPEN_EXISTING)
	switch {
	case flag&(windows.O_CREAT|windows.O_EXCL) == windows.O_CREAT|windows.O_EXCL:
		disposition = windows.CREATE_NEW
		attrs |= windows.FILE_FLAG_OPEN_REPARSE_POINT
	case flag&windows.O_CREAT != 0:
		disposition = windows.OPEN_ALWAYS
	}
	if perm&0o200 == 0 && flag&windows.O_CREAT != 0 {
		attrs |= windows.FILE_ATTRIBUTE_READONLY
	} else {
		attrs |= windows.FILE_ATTRIBUTE_NORMAL
	}
	h, err := windows.CreateFile(name, access, shareAll, nil, disposition, attrs, 0)
	if err != nil {
		if err == windows.ERROR_ACCESS_DENIED {
			if deletePending(name) {
				return descriptor{}, errBusy
			}
			if a, aerr := windows.GetFileAttributes(name); aerr == nil && a&windows.FILE_ATTRIBUTE_DIRECTORY != 0 {
				return descriptor{}, errDirectory
			}
		}
		return descriptor{}, err
	}
	id, err := sysIdentify(uintptr(h), "")
	if err != nil {
		windows.CloseHandle(h)
		return descriptor{}, err
	}
	return descriptor{fd: uintptr(h), id: id}, nil
}

// sysFile returns the os.File that owns fd from now on.
func sysFile(fd uintptr, path string) *os.File { return os.NewFile(fd, path) }

const shareAll = windows.FILE_SHARE_READ | windows.FILE_SHARE_WRITE | windows.FILE_SHARE_DELETE

func sysClose(fd uintptr) error { return windows.CloseHandle(windows.Handle(fd)) }

var errDirectory = unsupported("is a directory; Windows locks files only")

// sysIdentify identifies the file that path names or, where path is empty, the open
// file fd. What is not a file cannot be locked. A file that is removed, but whose
// name remains because it is open, does not exist.
func sysIdentify(fd uintptr, path string) (fileID, error) {
	h := windows.Handle(fd)
	if path != "" {
		name, err := windows.UTF16PtrFromString(path)
		if err != nil {
			return fileID{}, err
		}
		h, err = windows.CreateFile(name, windows.FILE_READ_ATTRIBUTES, shareAll, nil,
			windows.OPEN_EXISTING, windows.FILE_FLAG_BACKUP_SEMANTICS, 0)
		if err != nil {
			if err == windows.ERROR_ACCESS_DENIED && deletePending(name) {
				err = windows.ERROR_FILE_NOT_FOUND
			}
			return fileID{}, err
		}
		defer windows.CloseHandle(h)
	}
	if kind, err := windows.GetFileType(h); err != nil {
		return fileID{}, err
	} else if kind != windows.FILE_TYPE_DISK {
		return fileID{}, unsupported("is a pipe or device; only files can be locked")
	}
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(h, &info); err != nil {
		return fileID{}, err
	}
	if info.FileAttributes&windows.FILE_ATTRIBUTE_DIRECTORY != 0 {
		return fileID{}, errDirectory
	}
	return fileID{
		dev: uint64(info.VolumeSerialNumber),
		ino: uint64(info.FileIndexHigh)<<32 | uint64(info.FileIndexLow),
	}, nil
}

// deletePending reports whether path names a file that is removed but open. Win32
// calls that "access denied"; the kernel's own call tells.
func deletePending(path *uint16) bool { return ntOpen(path) == windows.STATUS_DELETE_PENDING }

// ntOpen returns the NTSTATUS of opening path, nil for success.
func ntOpen(path *uint16) error {
	var name windows.NTUnicodeString
	if err := windows.RtlDosPathNameToNtPathName(path, &name, nil, nil); err != nil {
		return err
	}
	defer rtlFreeUnicodeString.Call(uintptr(unsafe.Pointer(&name)))
	oa := windows.OBJECT_ATTRIBUTES{ObjectName: &name, Attributes: windows.OBJ_CASE_INSENSITIVE}
	oa.Length = uint32(unsafe.Sizeof(oa))
	var h windows.Handle
	var iosb windows.IO_STATUS_BLOCK
	err := windows.NtCreateFile(&h, windows.FILE_READ_ATTRIBUTES|windows.SYNCHRONIZE, &oa, &iosb, nil, 0, shareAll,
		windows.FILE_OPEN, windows.FILE_OPEN_FOR_BACKUP_INTENT, 0, 0)
	if err == nil {
		windows.CloseHandle(h)
	}
	return err
}

var rtlFreeUnicodeString = windows.NewLazySystemDLL("ntdll.dll").NewProc("RtlFreeUnicodeString")

// sysLock does r on fd, but for opBlock, which is Flock.block here. Like flock(2),
// unlocking what is not locked is no error.
func sysLock(fd uintptr, r request) error {
	if r.mechanism == OFD {
		return unsupported("Windows has no open file description locks; use Mechanism BSD")
	}
	h := windows.Handle(fd)
	if r.op == opUnlock || r.convert {
		err := windows.UnlockFileEx(h, 0, 1, 0, &windows.Overlapped{Offset: lockLow, OffsetHigh: lockHigh})
		if err == windows.ERROR_NOT_LOCKED || err == windows.ERROR_LOCK_VIOLATION { // wine's word for it
			err = nil
		}
		if err != nil || r.op == opUnlock {
			return err
		}
	}
	in, err := newInterrupt(h)
	if err != nil {
		return err
	}
	defer in.free()
	return in.run(func(o *windows.Overlapped) error { return lockFile(h, r, o) })
}

// lockFile begins to lock.
func lockFile(h windows.Handle, r request, o *windows.Overlapped) error {
	var flags uint32
	if r.mode == Exclusive {
		flags |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	if r.op == opTry {
		flags |= windows.LOCKFILE_FAIL_IMMEDIATELY
	}
	o.Offset, o.OffsetHigh = lockLow, lockHigh
	return windows.LockFileEx(h, flags, 0, 1, 0, o)
}

// lockError makes the package's error of that of an ended LockFileEx.
func lockError(err error) error {
	switch err {
	case windows.ERROR_LOCK_VIOLATION:
		return errBusy
	case windows.ERROR_OPERATION_ABORTED:
		return errInterrupted
	case windows.ERROR_INVALID_FUNCTION, windows.ERROR_INVALID_PARAMETER, windows.ERROR_NOT_SUPPORTED,
		windows.ERROR_CALL_NOT_IMPLEMENTED:
		return &unsupportedError{"the file system cannot lock (LockFileEx)", err}
	}
	return err
}
