package flockctx_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// Traps that other libraries fell into. Each has its test, named after it, in the
// file where it belongs:
//
//	 1  a second lock of a handle converts its first               convert_test.go
//	 2  a failed upgrade loses the lock                            convert_test.go
//	 3  a mutex is held while the handle waits                     handle_test.go
//	 4  one handle admits several goroutines                       handle_test.go
//	 5  the lock of a file that is gone                            stale_test.go
//	 6  polling starves, wakes late, or burns a core               poll_test.go race_test.go
//	 7  EINTR of others' signals                                   signal_linux_test.go
//	 8  a thread for each waiter                                   signal_linux_test.go
//	 9  what a timed-out Lock leaves behind                        cancel_test.go
//	10  descriptors that children inherit                          signal_linux_test.go
//	11  an inode without its device                                race_test.go
//	12  a try that blocks                                          cancel_test.go
//	13  symbolic links                                             stale_test.go
//	14  a deadline that is early or late                           poll_test.go
//	15  finalizers                                                 collector_test.go
//	16  truncation without the lock, and through links             options_test.go stale_test.go
//	17  flock(2) over NFS                                          fault_linux_test.go
//	18  a refusal that looks like a timeout                        cancel_test.go fault_linux_test.go
//	19  two owners of a descriptor                                 fault_linux_test.go
const traps = 19

// None of them loses its test.
func TestTrapsHaveTests(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	must(t, err)
	if len(files) == 0 {
		t.Skip("SKIP: the test binary runs without its source")
	}
	found := make(map[int]bool)
	for _, file := range files {
		b, err := os.ReadFile(file)
		must(t, err)
		for _, m := range regexp.MustCompile(`(?m)^func TestTrap(\d+)`).FindAllSubmatch(b, -1) {
			n, _ := strconv.Atoi(string(m[1]))
			found[n] = true
		}
	}
	for n := 1; n <= traps; n++ {
		if !found[n] {
			t.Errorf("trap %d has no test", n)
		}
	}
}
