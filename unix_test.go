//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package flockctx_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	errLoop  = unix.ELOOP
	noFollow = unix.O_NOFOLLOW
)

// specialFiles makes one of each kind that cannot be locked.
func specialFiles(t *testing.T, dir string) map[string]string {
	fifo, socket := filepath.Join(dir, "fifo"), filepath.Join(dir, "socket")
	must(t, unix.Mkfifo(fifo, 0o600))
	l, err := net.Listen("unix", socket)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return map[string]string{"FIFO": fifo, "socket": socket, "device": os.DevNull}
}
