package lockedfile

import (
	"time"

	"golang.org/x/sys/unix"
)

// systemBegan returns when the system was started, to a second or two.
func systemBegan() time.Time {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(info.Uptime) * time.Second)
}
