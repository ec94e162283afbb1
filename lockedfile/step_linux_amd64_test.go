package lockedfile_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/flockctx/flockctx/internal/syscallstep"
	"github.com/flockctx/flockctx/lockedfile"
	"golang.org/x/sys/unix"
)

// fileCalls are the system calls that concern files: the others are the runtime's, which
// cannot go on without them.
var fileCalls = map[int]string{
	unix.SYS_OPENAT: "openat", unix.SYS_CLOSE: "close", unix.SYS_READ: "read", unix.SYS_WRITE: "write",
	unix.SYS_FSTAT: "fstat", unix.SYS_NEWFSTATAT: "newfstatat", unix.SYS_FLOCK: "flock", unix.SYS_GETDENTS64: "getdents64",
	unix.SYS_FSYNC: "fsync", unix.SYS_RENAMEAT: "renameat", unix.SYS_LINKAT: "linkat", unix.SYS_UNLINKAT: "unlinkat",
	unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHOWN: "fchown", unix.SYS_READLINKAT: "readlinkat", unix.SYS_FCNTL: "fcntl",
	unix.SYS_FLISTXATTR: "flistxattr", unix.SYS_FGETXATTR: "fgetxattr", unix.SYS_FSETXATTR: "fsetxattr",
	unix.SYS_FREMOVEXATTR: "fremovexattr", unix.SYS_FTRUNCATE: "ftruncate",
}

// Each system call fails once, in turn. Where Update says nil or DurabilityError the
// content is new, else it is as before, and nothing is left, unless what removes it
// failed. Interrupted calls are made again.
func TestErrorAtEachSystemCall(t *testing.T) {
	canTrace(t)
	errnos := []syscall.Errno{unix.EIO, unix.EINTR, unix.ENOSPC}
	if testing.Short() {
		errnos = errnos[:1]
	}
	for _, scenario := range stepScenarios {
		for _, errno := range errnos {
			t.Run(scenario.name+" "+unix.ErrnoName(errno), func(t *testing.T) {
				var seen []string
				before := "none"
				if scenario.exists {
					before = "old"
				}
				for at, ended := 0, false; !ended; at++ {
					dir, path := stepDir(t, scenario.exists)
					ended = true
					name, calls := "", 0
					cmd := newCommand(t, "update", path)
					var out bytes.Buffer
					cmd.Stdout = &out
					must(t, syscallstep.Run(cmd, func(s syscallstep.Step) syscallstep.Action {
						call, ok := fileCalls[s.Call]
						if !ok {
							return syscallstep.Action{}
						}
						if calls++; calls != at+1 {
							return syscallstep.Action{}
						}
						ended, name = false, call
						return syscallstep.Action{Fail: errno}
					}))
					descriptors, outcome, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
					state := stepState(t, path)
					where := fmt.Sprintf("%s, the %dth call, failed: Update says %s; %s", name, at, outcome, state)
					if (outcome == "nil" || outcome == "durability") != (state == "new") || state != "new" && state != before {
						t.Error(where)
					}
					if outcome == "durability" && name != "fsync" || errno == unix.EINTR && outcome != "nil" && name != "close" {
						t.Error(where)
					}
					if outcome != "nil" && outcome != "durability" && strings.Count(outcome, path) != 1 {
						t.Error(where, "- it must name the path once")
					}
					if descriptors != "0" && name != "close" && name != "flock" { // which it then did not do
						t.Error(where, "- descriptors more:", descriptors)
					}
					entries, err := os.ReadDir(dir)
					must(t, err)
					for _, e := range entries {
						// A Lock that fails leaves the mark that it created, and so does one
						// that cannot see that the mark is its own.
						isMark := name == "fstat" || name == "flock" || name == "newfstatat" && outcome == "nil"
						isMark = isMark && strings.HasPrefix(lockedfile.MarkOf("file")+"-note", e.Name())
						isNote := name == "close" && e.Name() == lockedfile.MarkOf("file")+"-note"
						if e.Name() != "file" && name != "unlinkat" && !isMark && !isNote {
							t.Error(where, "- left behind:", e.Name())
						}
					}
					seen = append(seen, fmt.Sprintf("%s: %s", name, strings.ReplaceAll(outcome, path, "PATH")))
					must(t, lockedfile.Update(t.Context(), path, 0o600, func([]byte) ([]byte, error) { return []byte("next"), nil }))
					wantContent(t, path, "next")
					wantNames(t, dir, "file")
					must(t, os.RemoveAll(dir))
				}
				t.Logf("%d calls:\n%s", len(seen)-1, strings.Join(seen, "\n"))
			})
		}
	}
}
