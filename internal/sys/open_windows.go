//go:build windows

package sys

import (
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// writeRefusals are the errors, besides those of permission, of a file that can
// perhaps be opened for reading.
var writeRefusals = []error{windows.ERROR_WRITE_PROTECT}

// openAny opens path with the flag and permissions of os.OpenFile. It does not use
// that, because the file must be shared for deletion: else Remove and log rotation
// would fail as long as somebody waits. The error is the system's, or ErrBusy where
// the path names a file that is removed but still open.
func openAny(path string, flag int, perm fs.FileMode) (Descriptor, error) {
	if path == "" {
		return Descriptor{}, windows.ERROR_FILE_NOT_FOUND
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return Descriptor{}, err
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
				return Descriptor{}, ErrBusy
			}
			if a, aerr := windows.GetFileAttributes(name); aerr == nil && a&windows.FILE_ATTRIBUTE_DIRECTORY != 0 {
				return Descriptor{}, errDirectory
			}
		}
		return Descriptor{}, err
	}
	id, err := identify(h)
	if err != nil {
		windows.CloseHandle(h)
		return Descriptor{}, err
	}
	return Descriptor{fd: uintptr(h), ID: id, open: true}, nil
}

const rootFlags = 0

var errAgain error

// Create creates the file at path, which must not exist.
func Create(path string, flag int, perm fs.FileMode) (Descriptor, error) {
	return openAny(path, flag|windows.O_CREAT|windows.O_EXCL, perm)
}

// newFile returns the os.File that owns fd from now on.
func newFile(fd uintptr, path string) *os.File { return os.NewFile(fd, path) }

const shareAll = windows.FILE_SHARE_READ | windows.FILE_SHARE_WRITE | windows.FILE_SHARE_DELETE

// Close closes a bare descriptor.
func Close(fd uintptr) error { return windows.CloseHandle(windows.Handle(fd)) }

// noFile are the errors, besides that of a missing name, that say that a path names no
// file; forgotten those of a file that the server knows no more.
var (
	noFile    = []error{windows.ERROR_DIRECTORY}
	forgotten []error
)

var errDirectory = Unsupported("is a directory; Windows locks files only")

func identifyOpen(fd uintptr) (id FileID, k kind, err error) {
	id, err = identify(windows.Handle(fd))
	return id, unknown, err
}

// identifyPath identifies the file that path names. One that is removed, but whose name
// remains because it is open, does not exist.
func identifyPath(path string, _ bool) (FileID, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return FileID{}, err
	}
	h, err := windows.CreateFile(name, windows.FILE_READ_ATTRIBUTES, shareAll, nil,
		windows.OPEN_EXISTING, windows.FILE_FLAG_BACKUP_SEMANTICS, 0)
	if err != nil {
		if err == windows.ERROR_ACCESS_DENIED && deletePending(name) {
			err = windows.ERROR_FILE_NOT_FOUND
		}
		return FileID{}, err
	}
	defer windows.CloseHandle(h)
	return identify(h)
}

// identify identifies the open file h. What is not a file cannot be locked.
func identify(h windows.Handle) (FileID, error) {
	if kind, err := windows.GetFileType(h); err != nil {
		return FileID{}, err
	} else if kind != windows.FILE_TYPE_DISK {
		return FileID{}, Unsupported("is a pipe or device; only files can be locked")
	}
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(h, &info); err != nil {
		return FileID{}, err
	}
	if info.FileAttributes&windows.FILE_ATTRIBUTE_DIRECTORY != 0 {
		return FileID{}, errDirectory
	}
	return FileID{
		Dev: uint64(info.VolumeSerialNumber),
		Ino: uint64(info.FileIndexHigh)<<32 | uint64(info.FileIndexLow),
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
