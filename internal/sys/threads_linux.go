package sys

import (
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// MaxThreads returns how many threads this process may have, as far as RLIMIT_NPROC
// (getrlimit(2); root has none) and the pids controller of its cgroups (cgroups(7)) tell.
var MaxThreads = sync.OnceValue(func() int {
	limit := math.MaxInt32
	var nproc unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NPROC, &nproc) == nil && unix.Getuid() != 0 {
		limit = int(min(uint64(limit), nproc.Cur))
	}
	groups, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(groups)) {
		// hierarchy:controllers:path, where version 2 has no controllers
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		root := "/sys/fs/cgroup"
		switch f[1] {
		case "":
		case "pids":
			root += "/pids"
		default:
			continue
		}
		for dir := f[2]; ; dir = path.Dir(dir) {
			b, _ := os.ReadFile(path.Join(root, dir, "pids.max"))
			if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil { // not "max"
				limit = min(limit, n)
			}
			if len(dir) <= 1 {
				break
			}
		}
	}
	return limit
})
