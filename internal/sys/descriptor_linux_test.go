package sys

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSame(t *testing.T) {
	borrow := func(f *os.File, err error) Descriptor {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		d, err := Borrow(f)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	a, b := borrow(os.Open(os.DevNull)), borrow(os.Open(os.DevNull))
	number, err := unix.FcntlInt(a.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	duplicate := borrow(os.NewFile(uintptr(number), "duplicate"), err)
	if !a.Same(a.file) || a.Same(b.file) {
		t.Error("a descriptor is not its own, or two are one")
	}
	if !a.Same(duplicate.file) {
		if _, _, errno := unix.Syscall6(unix.SYS_KCMP, 1, 1, 0, 0, 0, 0); errno != unix.ENOSYS && errno != unix.EPERM {
			t.Error("a duplicate is not the same")
		}
	}
}

// The lock of a directory on a network file system is refused, whichever way it is opened.
func TestDirectoryOnANetworkFileSystem(t *testing.T) {
	path, err := os.MkdirTemp("/dev/shm", "flockctx")
	if err != nil {
		t.Skip(err)
	}
	defer os.Remove(path)
	root, err := os.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	const tmpfs = 0x01021994
	was := fileSystems[tmpfs]
	defer func() { fileSystems[tmpfs] = was }()
	fileSystems[tmpfs] = fileSystem{"nfs", nfs}
	if d, err := Open(path, os.O_RDONLY, 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Open: %v, %v", d, err)
	}
	if d, err := OpenIn(root, ".", os.O_RDONLY, 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("OpenIn: %v, %v", d, err)
	}
}
