//go:build linux

package lockedfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/flockctx/flockctx/internal/syscallstep"
	"golang.org/x/sys/unix"
)

// TestTable runs all subjects through the harness, and compares what it sees with the
// table in the documentation.
func TestTable(t *testing.T) {
	needRoot(t)
	const document, begin, end = "../../docs/lockedfile.md", "<!-- seen by verify/lockedfile, written by -update -->\n", "<!-- end -->\n"
	var table strings.Builder
	table.WriteString("| |")
	for _, s := range subjects {
		table.WriteString(" " + s.name + " |")
	}
	table.WriteString("\n|---|" + strings.Repeat("---|", len(subjects)) + "\n")
	for _, row := range rows {
		table.WriteString("| " + row.name + " |")
		for _, s := range subjects {
			table.WriteString(" " + row.see(t, s) + " |")
		}
		table.WriteString("\n")
	}
	text, err := os.ReadFile(document)
	must(t, err)
	before, rest, ok1 := strings.Cut(string(text), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table", document)
	}
	if *updateFlag {
		must(t, os.WriteFile(document, []byte(before+begin+table.String()+end+after), 0o644))
	} else if old != table.String() {
		t.Errorf("%s says\n%s\nseen was\n%s", document, old, table.String())
	}
}

var rows = []struct {
	name string
	see  func(t *testing.T, s subject) string
}{
	{"mode of the file replaced", seeKept(func(path string) error { return os.Chmod(path, 0o751) })},
	{"its owner and group (as root)", seeKept(func(path string) error { return os.Chown(path, 1234, 4321) })},
	{"its ACL", seeKept(func(path string) error { return unix.Setxattr(path, "system.posix_acl_access", acl(1000), 0) })},
	{"its label (`security.*`) and `user.*`", seeKept(func(path string) error {
		return errors.Join(unix.Setxattr(path, "security.SMACK64", []byte("label"), 0), unix.Setxattr(path, "user.note", []byte("mine"), 0))
	})},
	{"a symbolic link at the path", seeLink},
	{"another hard link of the file", seeHardLink},
	{"killed at each system call: the content is", seeKilled},
	{"files that a kill leaves", seeLeft},
	{"power lost before it returned: the content is", func(t *testing.T, s subject) string { return seePowerLoss(t, s, false) }},
	{"power lost after it returned nil: the content is", func(t *testing.T, s subject) string { return seePowerLoss(t, s, true) }},
	{"read, change and write, by 8 at once: lost", seeUpdates},
}

// newFile makes a directory with the file.
func newFile(t *testing.T) (path string) {
	dir, err := os.MkdirTemp(t.TempDir(), "")
	must(t, err)
	path = filepath.Join(dir, "file")
	must(t, os.WriteFile(path, []byte(oldContent), 0o640))
	return path
}

// seeKept has a file that change was made to replaced, and compares what belongs to it.
func seeKept(change func(path string) error) func(*testing.T, subject) string {
	return func(t *testing.T, s subject) string {
		path := newFile(t)
		plain := belongings(t, path)
		must(t, change(path))
		before := belongings(t, path)
		if maps.Equal(before, plain) {
			t.Fatal("nothing was changed")
		}
		must(t, s.write(path, []byte(newContent)))
		now := belongings(t, path)
		for name := range before {
			if before[name] != plain[name] && before[name] != now[name] {
				return "lost"
			}
		}
		return "kept"
	}
}

// belongings are the mode, the owner, the group and the extended attributes of a file.
func belongings(t *testing.T, path string) map[string]string {
	info, err := os.Stat(path)
	must(t, err)
	st := info.Sys().(*syscall.Stat_t)
	all := map[string]string{"mode": info.Mode().String(), "owner": fmt.Sprint(st.Uid), "group": fmt.Sprint(st.Gid)}
	b := make([]byte, 4096)
	n, err := unix.Listxattr(path, b)
	must(t, err)
	for name := range strings.SplitSeq(string(b[:n]), "\x00") {
		v := make([]byte, 4096)
		if n, err := unix.Getxattr(path, name, v); name != "" && err == nil {
			all[name] = string(v[:n])
		}
	}
	return all
}

// acl returns an ACL that lets user uid read.
func acl(uid uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	const any = ^uint32(0)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, any}, {2, 4, uid}, {4, 4, any}, {16, 4, any}, {32, 0, any}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func content(t *testing.T, path string) string {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "none"
	}
	must(t, err)
	return contentState(string(b))
}

func seeLink(t *testing.T, s subject) string {
	path := newFile(t)
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(path, link))
	if err := s.write(link, []byte(newContent)); err != nil {
		return "an error"
	}
	info, err := os.Lstat(link)
	must(t, err)
	if info.Mode()&fs.ModeSymlink == 0 {
		return "replaced itself"
	}
	return "followed: " + content(t, path)
}

func seeHardLink(t *testing.T, s subject) string {
	path := newFile(t)
	must(t, os.Link(path, path+"2"))
	must(t, s.write(path, []byte(newContent)))
	return content(t, path+"2")
}

// killed kills the subject at each system call, and returns what was seen: the states
// of the content, and of the names beside it.
func killed(t *testing.T, s subject) (states, left string) {
	seen := map[string]bool{}
	leaves, stays := false, false
	for at, ended := 0, false; !ended; at++ {
		path := newFile(t)
		dir := filepath.Dir(path)
		ended = true
		must(t, syscallstep.Run(newCommand("write", s.name, path, "followed"), func(step syscallstep.Step) syscallstep.Action {
			if step.N == at {
				ended = false
			}
			return syscallstep.Action{Kill: step.N == at}
		}))
		seen[content(t, path)] = true
		leaves = leaves || names(t, dir) > 1
		must(t, s.write(path, []byte(newContent)))
		stays = stays || names(t, dir) > 1
		must(t, os.RemoveAll(dir))
	}
	left = "none"
	if leaves {
		left = "removed by the next write"
	}
	if stays {
		left = "stay"
	}
	return list(seen), left
}

func names(t *testing.T, dir string) int {
	entries, err := os.ReadDir(dir)
	must(t, err)
	return len(entries)
}

// list joins what was seen.
func list(seen map[string]bool) string {
	order := []string{"old", "new", "empty", "part", "none"}
	place := func(s string) int {
		return slices.IndexFunc(order, func(o string) bool { return strings.HasPrefix(s, o) })
	}
	return strings.Join(slices.SortedFunc(maps.Keys(seen), func(a, b string) int {
		if d := place(a) - place(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	}), ", ")
}

// killedOnce keeps what killed returned, for the two rows that are about it.
var killedOnce = map[string][2]string{}

func seeKilled(t *testing.T, s subject) string {
	states, left := killed(t, s)
	killedOnce[s.name] = [2]string{states, left}
	return states
}

func seeLeft(_ *testing.T, s subject) string { return killedOnce[s.name][1] }

func seePowerLoss(t *testing.T, s subject, returned bool) string {
	r := record(t, s.name, "exists")
	seen := map[string]bool{}
	for n := r.Before; n <= len(r.Ops); n++ {
		if returned && n < len(r.Ops) {
			continue
		}
		for _, im := range imagesAfter(r.Ops, n) {
			seen[imageState(im, 0o640)] = true
		}
	}
	return list(seen)
}

// seeUpdates has 8 goroutines add to the file, by the subject's Update, or else by a
// read and a write. What 8 processes do would be no better.
func seeUpdates(t *testing.T, s subject) string {
	for range 5 { // by chance none may be lost
		if losesUpdates(t, s) {
			return "yes"
		}
	}
	return "none"
}

func losesUpdates(t *testing.T, s subject) bool {
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, nil, 0o600))
	update := s.update
	if update == nil {
		update = func(path string, fn func([]byte) ([]byte, error)) error {
			old, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			data, err := fn(old)
			if err != nil {
				return err
			}
			return s.write(path, data)
		}
	}
	const each = 20
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range each {
				err := update(path, func(old []byte) ([]byte, error) { return append(bytes.Clone(old), '.'), nil })
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b, err := os.ReadFile(path)
	must(t, err)
	return len(b) != 8*each
}
