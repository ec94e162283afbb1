package lockedfile_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/flockctx/flockctx/lockedfile"
)

// symlink makes a symbolic link, or skips the test.
func symlink(t *testing.T, to, path string) {
	t.Helper()
	err := os.Symlink(to, path)
	if runtime.GOOS == "windows" {
		// Few may make one there, and wine makes something else.
		if info, lerr := os.Lstat(path); err != nil || lerr != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Skipf("SKIP: %s: no symbolic links: %v, %v", t.Name(), err, lerr)
		}
	}
	must(t, err)
}

// A symbolic link stays one, and the file that it leads to is replaced, or created, in
// its own directory.
func TestSymbolicLinks(t *testing.T) {
	for _, exists := range []bool{true, false} {
		dir := t.TempDir()
		at := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
		for _, d := range []string{"real", "real/deep", "links"} {
			must(t, os.Mkdir(at(d), 0o700))
		}
		symlink(t, filepath.FromSlash("../real/file"), at("links/relative"))
		symlink(t, at("real/file"), at("links/absolute"))
		symlink(t, "relative", at("links/chain"))
		// Cleaned, this path would be links/file.
		symlink(t, filepath.FromSlash("../real/deep"), at("links/deep"))
		symlink(t, filepath.FromSlash("deep/../file"), at("links/up"))
		for i, link := range []string{"links/relative", "links/absolute", "links/chain", "links/up"} {
			os.Remove(at("real/file"))
			if exists {
				must(t, os.WriteFile(at("real/file"), []byte("old"), 0o600))
			}
			want := fmt.Sprint("new", i)
			must(t, lockedfile.Write(t.Context(), at(link), []byte(want), 0o600))
			wantContent(t, at("real/file"), want)
			if st, err := os.Lstat(at(link)); err != nil || st.Mode()&os.ModeSymlink == 0 {
				t.Errorf("%s is no link any more: %v, %v", link, st.Mode(), err)
			}
			b, err := lockedfile.Read(t.Context(), at(link))
			if err != nil || string(b) != want {
				t.Errorf("%s: read %q, %v", link, b, err)
			}
			wantNames(t, at("real"), "deep", "file")
			wantNames(t, at("links"), "absolute", "chain", "deep", "relative", "up")
		}
	}
}

func TestLinkToItself(t *testing.T) {
	path := filepath.Join(t.TempDir(), "link")
	symlink(t, "link", path)
	err := lockedfile.Write(t.Context(), path, nil, 0o600)
	if err == nil {
		t.Fatal("written through a link to itself")
	}
	wantPathOnce(t, err, path)
}

// A link that is led elsewhere all the time: what is written is where the link led at
// some instant of the call, whole, and the link is one of the two all the time.
func TestLinkThatMoves(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	var targets []string
	for _, name := range []string{"a", "b"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, name, "file"), []byte("begin"), 0o600))
		targets = append(targets, filepath.Join(name, "file"))
	}
	symlink(t, targets[0], link)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			next := filepath.Join(dir, "next")
			if err := os.Symlink(targets[i%2], next); err != nil {
				t.Error(err)
				return
			}
			if err := os.Rename(next, link); err != nil {
				t.Error(err)
				return
			}
		}
	})
	added, calls := 0, 0
	for range 100 {
		if err := lockedfile.Update(t.Context(), link, 0o600, func(old []byte) ([]byte, error) { calls++; return append(old, '.'), nil }); err != nil {
			t.Error(err)
			break
		}
		added++
	}
	close(stop)
	wg.Wait()
	sum := 0
	for _, target := range targets {
		b, err := os.ReadFile(filepath.Join(dir, target))
		must(t, err)
		sum += len(b) - len("begin")
		wantNames(t, filepath.Dir(filepath.Join(dir, target)), "file")
	}
	if sum != added || calls != added {
		t.Errorf("%d Updates returned, %d are there, fn ran %d times", added, sum, calls)
	}
}

// The other names of the file that is replaced keep the old content, as documented.
func TestHardLink(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "file"), filepath.Join(dir, "other")
	must(t, os.WriteFile(path, []byte("old"), 0o600))
	if err := os.Link(path, other); err != nil {
		t.Skipf("SKIP: %s: no hard links: %v", t.Name(), err)
	}
	must(t, lockedfile.Write(t.Context(), path, []byte("new"), 0o600))
	wantContent(t, path, "new")
	wantContent(t, other, "old")
	// The other way round too.
	must(t, lockedfile.Write(t.Context(), other, []byte("newer"), 0o600))
	wantContent(t, path, "new")
	wantContent(t, other, "newer")
	wantNames(t, dir, "file", "other")
}
