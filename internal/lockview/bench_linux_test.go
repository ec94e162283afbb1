package lockview_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/flockctx/flockctx/internal/lockview"
	"golang.org/x/sys/unix"
)

// What an answer costs with many locks in this process: it grows as they do.
func BenchmarkAll(b *testing.B) {
	for _, kind := range []string{"files", "ranges", "readers"} {
		for _, n := range []int{100, 1000, 10000} {
			b.Run(fmt.Sprintf("%s=%d", kind, n), func(b *testing.B) {
				many(b, kind, n)
				for b.Loop() {
					ls, err := lockview.All(nobody)
					must(b, err)
					if len(ls) < n {
						b.Fatalf("%d locks; want %d", len(ls), n)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/lock")
			})
		}
	}
}

// many has n locks: on as many files, on ranges of one file, or shared on one file.
func many(b *testing.B, kind string, n int) {
	var limit unix.Rlimit
	must(b, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	if kind != "ranges" && limit.Cur < uint64(n)+100 {
		b.Skipf("SKIP: %s: %d descriptors are allowed", b.Name(), limit.Cur)
	}
	if kind == "readers" && n > 1000 {
		b.Skip("SKIP: for each descriptor the kernel walks all locks of the file")
	}
	path := newFile(b)
	locks(b, path)
	dir := b.TempDir()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(b, err)
	b.Cleanup(func() { f.Close() })
	for i := range n {
		switch kind {
		case "files":
			path = filepath.Join(dir, fmt.Sprint(i))
			must(b, os.WriteFile(path, nil, 0o600))
			fallthrough
		case "readers":
			lockedFile(b, path, unix.LOCK_SH)
		case "ranges":
			must(b, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(2 * i), Len: 1}))
		}
	}
}
