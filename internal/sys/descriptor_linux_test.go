package sys

import (
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
