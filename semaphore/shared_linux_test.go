package semaphore_test

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// mapFile maps a file, which several processes then have in common.
func mapFile(t testing.TB, name string) []byte {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	var page []byte
	if err == nil {
		defer f.Close()
		var size int64
		if size, err = f.Seek(0, io.SeekEnd); err != nil {
			panic(err)
		}
		page, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		panic(err)
	}
	if t != nil {
		t.Cleanup(func() { unix.Munmap(page) })
	}
	return page
}

// monotonic returns the time of a clock that all processes have in common.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}
