package lockedfile

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const accessACL = "system.posix_acl_access"

// isKept reports whether the attribute of that name belongs to the file: who may use it,
// its label, and what its users noted. What says something about the content, as
// capabilities and signatures do, goes with the content.
func isKept(name string) bool {
	switch name {
	case "security.capability", "security.ima", "security.evm":
		return false
	}
	return name == accessACL || strings.HasPrefix(name, "security.") || strings.HasPrefix(name, "user.")
}

// copyAttributes gives to the extended attributes of from that are kept. One that
// cannot be set is an error: a file without its label or ACL may be open to others.
func copyAttributes(from, to *os.File) error {
	return control(from, func(from int) error {
		return control(to, func(to int) error { return copyAttributesOf(from, to) })
	})
}

func copyAttributesOf(from, to int) error {
	names, err := attribute(func(b []byte) (int, error) { return unix.Flistxattr(from, b) })
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the extended attributes: %w", err)
	}
	hasACL := false
	for name := range strings.SplitSeq(string(names), "\x00") {
		if !isKept(name) {
			continue
		}
		value, err := attribute(func(b []byte) (int, error) { return unix.Fgetxattr(from, name, b) })
		if err == unix.ENODATA { // an ACL that says no more than the mode, or it is gone
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		hasACL = hasACL || name == accessACL
		now, err := attribute(func(b []byte) (int, error) { return unix.Fgetxattr(to, name, b) })
		if err == nil && bytes.Equal(now, value) {
			continue // which may not be ours to set
		}
		if err := again(func() error { return unix.Fsetxattr(to, name, value, 0) }); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	if hasACL {
		return nil
	}
	// The directory may have given it one.
	err = again(func() error { return unix.Fremovexattr(to, accessACL) })
	if err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP {
		return fmt.Errorf("remove %s: %w", accessACL, err)
	}
	return nil
}

// attribute reads what read puts into a buffer, whose size it tells for an empty one.
func attribute(read func([]byte) (int, error)) (b []byte, err error) {
	err = unix.ERANGE
	for err == unix.ERANGE { // it has grown meanwhile
		err = again(func() error {
			n, err := read(nil)
			if err == nil && n > 0 {
				b = make([]byte, n)
				n, err = read(b)
			}
			b = b[:max(n, 0)]
			return err
		})
	}
	return b, err
}

// control calls fn with f's descriptor.
func control(f *os.File, fn func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := c.Control(func(fd uintptr) { err = fn(int(fd)) })
	if cerr != nil {
		return cerr
	}
	return err
}
