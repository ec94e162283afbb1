package lockview_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flockctx/flockctx/internal/lockview"
)

func TestParseLocks(t *testing.T) {
	text := `1: FLOCK  ADVISORY  WRITE 15629 fe:00:9978689 0 EOF
1: -> FLOCK  ADVISORY  READ  15630 fe:00:9978689 0 EOF
1:  -> FLOCK  ADVISORY  WRITE 15631 fe:00:9978689 0 EOF
2: POSIX  ADVISORY  READ 7 00:2a:12 10 19
3: OFDLCK ADVISORY  WRITE -1 fe:00:5 0 EOF
3: -> OFDLCK ADVISORY  WRITE -1 fe:00:5 0 0
4: LEASE  BREAKING  READ 9 fe:00:6 0 EOF
4: -> LEASE  BREAKER   WRITE 10 <none>:0 0 EOF
5: ACCESS MANDATORY WRITE 1 fe:00:6 0 EOF
6: POSIX  *NOINODE* READ 7 <none>:0 10 19
7: FLOCK  ADVISORY  WRITE x fe:00:9978689 0 EOF
`
	var got []string
	for _, e := range lockview.ParseLocks(text) {
		got = append(got, fmt.Sprint(e))
	}
	want := []string{ // kind, shared, start, length, pid, device and inode
		"{{{0 false 0 0} 15629 {65024 9978689}} [{{0 true 0 0} 15630 {65024 9978689}} {{0 false 0 0} 15631 {65024 9978689}}]}",
		"{{{2 true 10 10} 7 {42 12}} []}",
		"{{{1 false 0 0} -1 {65024 5}} [{{1 false 0 1} -1 {65024 5}}]}",
		"{{{3 true 0 0} 9 {65024 6}} [{{3 false 0 0} 10 {65024 6}}]}",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add("1: -> FLOCK  ADVISORY  READ  15630 fe:00:9978689 0 EOF")
	f.Add("2: POSIX  ADVISORY  READ 7 00:2a:12 0 9223372036854775807")
	f.Add("4: -> LEASE  BREAKER   WRITE 10 <none>:0 0 EOF")
	f.Fuzz(func(t *testing.T, line string) {
		if l, _, _, ok := lockview.ParseLock(line); ok && (l.Start < 0 || l.Length < 0) {
			t.Errorf("%q: %+v", line, l)
		}
		lockview.ParseLocks(line)
	})
}
