//go:build linux

package lockedfile

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkWrite replaces a file of 1 KB, in a directory with as many other names as the
// name says. Nearly all of it is the disk's time for the syncs, of which the subjects
// make two, one or none; on a tmpfs (TMPDIR) it is that of the system calls.
func BenchmarkWrite(b *testing.B) {
	data := make([]byte, 1<<10)
	for _, others := range []int{0, 1000, 100000} {
		dir := b.TempDir()
		for i := range others {
			must(b, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600))
		}
		path := filepath.Join(dir, "file")
		for _, s := range subjects {
			b.Run(fmt.Sprintf("%d/%s", others, s.name), func(b *testing.B) {
				must(b, os.WriteFile(path, data, 0o600))
				for b.Loop() {
					must(b, s.write(path, data))
				}
			})
		}
	}
}
