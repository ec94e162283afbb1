//go:build linux

package advisory

import (
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialControl bounds how long the kernel sends a query again and again to a host that
// is dead: a quarter of an hour without this, in which keepalives rest.
func dialControl(timeout time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) (err error) {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
		})
		if cerr != nil {
			return cerr
		}
		return err
	}
}
