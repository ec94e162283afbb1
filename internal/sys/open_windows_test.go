package sys

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/windows"
)

// ntOpenPath returns the NTSTATUS of opening path.
func ntOpenPath(path string) error {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	return ntOpen(name)
}

func TestWindowsTheKernelTellsWhyItRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := ntOpenPath(path); err != windows.STATUS_OBJECT_NAME_NOT_FOUND {
		t.Errorf("missing: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ntOpenPath(path); err != nil {
		t.Errorf("file: %v", err)
	}
	if err := os.Remove(path); err != nil { // no handle was left open
		t.Fatal(err)
	}
	if err := ntOpenPath(path); err != windows.STATUS_OBJECT_NAME_NOT_FOUND {
		t.Errorf("removed: %v", err)
	}
}

func TestOverlappedIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	d, err := Open(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if !isOverlapped(windows.Handle(d.fd)) {
		t.Error("a file that Open opened is not overlapped")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if isOverlapped(windows.Handle(f.Fd())) {
		t.Error("one that os.Open opened is")
	}
}
