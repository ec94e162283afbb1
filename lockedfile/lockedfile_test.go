package lockedfile_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/lockedfile"
)

// set returns a function for Update that puts s into place.
func set(s string) func([]byte) ([]byte, error) {
	return func([]byte) ([]byte, error) { return []byte(s), nil }
}

func TestWriteCreatesAndReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, s := range []string{"one", "", "three"} {
		must(t, lockedfile.Write(t.Context(), path, []byte(s), 0o640))
		b, err := lockedfile.Read(t.Context(), path)
		must(t, err)
		if string(b) != s || b == nil {
			t.Fatalf("read %#v, want %q", b, s)
		}
		wantNames(t, dir, "file")
	}
}

func TestUpdateGetsTheOldContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	var seen []string
	for _, s := range []string{"one", "", "three"} {
		must(t, lockedfile.Update(t.Context(), path, 0o600, func(old []byte) ([]byte, error) {
			seen = append(seen, fmt.Sprintf("%q %v", old, old == nil))
			return []byte(s), nil
		}))
	}
	if got := strings.Join(seen, ", "); got != `"" true, "one" false, "" false` {
		t.Errorf("old was %s", got)
	}
	wantContent(t, path, "three")
}

// An error of fn, or a panic, changes nothing; where there was no file there is none,
// at any time.
func TestErrorOfFn(t *testing.T) {
	for _, exists := range []bool{false, true} {
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		var names []string
		if exists {
			must(t, os.WriteFile(path, []byte("old"), 0o600))
			names = []string{"file"}
		}
		mine := errors.New("mine")
		err := lockedfile.Update(t.Context(), path, 0o600, func([]byte) ([]byte, error) {
			if _, err := os.Lstat(path); (err == nil) != exists {
				t.Errorf("the file exists while fn runs: %v", err == nil)
			}
			return []byte("new"), mine
		})
		if err != mine {
			t.Errorf("got %v, want fn's error itself", err)
		}
		wantNames(t, dir, names...)
		func() {
			defer func() { recover() }()
			lockedfile.Update(t.Context(), path, 0o600, func([]byte) ([]byte, error) { panic("mine") })
		}()
		wantNames(t, dir, names...)
		if exists {
			wantContent(t, path, "old")
		}
		must(t, lockedfile.Update(t.Context(), path, 0o600, set("new"))) // the lock is free
		wantContent(t, path, "new")
	}
}

func TestReadOfNoFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	_, err := lockedfile.Read(t.Context(), path)
	wantErr(t, err, fs.ErrNotExist)
	wantPathOnce(t, err, path)
	wantNames(t, dir)
	path = filepath.Join(dir, "missing", "file")
	err = lockedfile.Write(t.Context(), path, nil, 0o600)
	wantErr(t, err, fs.ErrNotExist)
	wantPathOnce(t, err, path)
}

func TestDirectoryAtThePath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub")
	must(t, os.Mkdir(path, 0o700))
	_, err := lockedfile.Read(t.Context(), path)
	if err == nil {
		t.Fatal("read a directory")
	}
	wantPathOnce(t, err, path)
	for _, path := range []string{path, path + string(os.PathSeparator), filepath.Join(path) + string(os.PathSeparator) + "."} {
		err := lockedfile.Write(t.Context(), path, nil, 0o600)
		wantErr(t, err, syscall.EISDIR)
		wantPathOnce(t, err, path)
	}
	wantNames(t, dir, "sub")
	wantNames(t, path)
}

// Close without Commit: nothing happened. Commit, and then Close: it did.
func TestPending(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, before := range []string{"", "old"} {
		p, err := lockedfile.Replace(t.Context(), path, 0o600)
		must(t, err)
		if _, err := p.Write([]byte("dropped")); err != nil {
			t.Fatal(err)
		}
		must(t, p.Close())
		must(t, p.Close())
		wantErr(t, p.Commit(), fs.ErrClosed)
		_, err = p.Write(nil)
		wantErr(t, err, fs.ErrClosed)
		if before == "" {
			wantNames(t, dir)
		} else {
			wantContent(t, path, before)
		}

		p, err = lockedfile.Replace(t.Context(), path, 0o600)
		must(t, err)
		for _, s := range []string{"o", "l", "d"} {
			n, err := p.Write([]byte(s))
			if n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		if _, err := os.Lstat(path); (err == nil) != (before != "") {
			t.Error("there before Commit, or gone:", err)
		}
		must(t, p.Commit())
		must(t, p.Close())
		err = p.Commit()
		wantErr(t, err, fs.ErrClosed)
		wantPathOnce(t, err, path)
		wantContent(t, path, "old")
		wantNames(t, dir, "file")
	}
}

// While a writer is at work others wait, as their ctx says, and Read with them; who
// reads without a lock sees the old content, or no file.
func TestOthersWait(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, exists := range []bool{false, true} {
		p, err := lockedfile.Replace(t.Context(), path, 0o600)
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		called := false
		err = lockedfile.Update(ctx, path, 0o600, func([]byte) ([]byte, error) { called = true; return nil, nil })
		wantErr(t, err, context.DeadlineExceeded)
		busy, ok := err.(*flockctx.BusyError)
		if !ok || busy.Path != path || called {
			t.Errorf("%#v; fn called: %v", err, called)
		}
		wantPathOnce(t, err, path)
		if exists || runtime.GOOS == "windows" {
			_, err = lockedfile.Read(ctx, path)
			wantErr(t, err, context.DeadlineExceeded)
		} else {
			_, err = lockedfile.Read(t.Context(), path)
			wantErr(t, err, fs.ErrNotExist)
		}
		if exists {
			wantContent(t, path, "new")
		}
		done := make(chan error, 1)
		go func() {
			done <- lockedfile.Update(context.Background(), path, 0o600, func(old []byte) ([]byte, error) {
				return append(old, " and more"...), nil
			})
		}()
		if _, err := p.Write([]byte("new")); err != nil {
			t.Fatal(err)
		}
		must(t, p.Commit())
		must(t, <-done)
		wantContent(t, path, "new and more")
		must(t, os.WriteFile(path, []byte("new"), 0o600))
		wantNames(t, dir, "file")
	}
}

// A ctx that is done on entry wins over everything.
func TestEndedContext(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, exists := range []bool{false, true} {
		if exists {
			must(t, os.WriteFile(path, []byte("old"), 0o600))
		}
		wantErr(t, lockedfile.Write(ctx, path, nil, 0o600), context.Canceled)
		_, err := lockedfile.Read(ctx, path)
		wantErr(t, err, context.Canceled)
	}
	wantContent(t, path, "old")
	wantNames(t, dir, "file")
	// Also over what is wrong with the path.
	for _, path := range []string{dir, filepath.Join(dir, "missing", "file")} {
		err := lockedfile.Write(ctx, path, nil, 0o600)
		wantErr(t, err, context.Canceled)
		wantPathOnce(t, err, path)
	}
}

// Goroutines, of this process alone: no update is lost, from the first one on, which
// creates the file. What fn shares with itself needs no lock, says the race detector.
func TestGoroutines(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	const workers, each = 8, 10
	shared := 0
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				err := lockedfile.Update(t.Context(), path, 0o600, func(old []byte) ([]byte, error) {
					shared++
					n := 0
					if old != nil {
						var err error
						if n, err = strconv.Atoi(string(old)); err != nil {
							return nil, err
						}
					}
					return strconv.AppendInt(nil, int64(n+1), 10), nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	wantContent(t, path, strconv.Itoa(workers*each))
	if shared != workers*each {
		t.Errorf("fn ran %d times", shared)
	}
	wantNames(t, dir, "file")
}

// Where no file comes of it the lock is on another mark each time; who comes when one is
// gone, but not unlocked yet, gets the lock of the next one at once.
func TestGoroutinesWithoutAFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	mark := filepath.Join(dir, lockedfile.MarkOf("file"))
	const rounds = 300
	shared := 0
	mine := errors.New("mine")
	fn := func([]byte) ([]byte, error) { shared++; return nil, mine }
	for range rounds {
		inside, done := make(chan struct{}), make(chan error, 1)
		go func() {
			done <- lockedfile.Update(context.Background(), path, 0o600, func([]byte) ([]byte, error) {
				close(inside)
				return fn(nil)
			})
		}()
		<-inside
		for {
			if _, err := os.Lstat(mark); err != nil {
				break
			}
		}
		if err := lockedfile.Update(t.Context(), path, 0o600, fn); err != mine {
			t.Fatal(err)
		}
		if err := <-done; err != mine {
			t.Fatal(err)
		}
	}
	if shared != 2*rounds {
		t.Errorf("fn ran %d times", shared)
	}
	wantNames(t, dir)
}

// The same with many files that are created, by all workers at once.
func TestCreation(t *testing.T) {
	dir := t.TempDir()
	const workers, files = 6, 20
	var wg sync.WaitGroup
	var shared [files]int
	for range workers {
		wg.Go(func() {
			for i := range files {
				path := filepath.Join(dir, fmt.Sprint(i))
				err := lockedfile.Update(t.Context(), path, 0o600, func(old []byte) ([]byte, error) {
					shared[i]++
					return append(old, 'x'), nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != files {
		t.Errorf("%d names, want %d", len(entries), files)
	}
	for i, n := range shared {
		wantContent(t, filepath.Join(dir, fmt.Sprint(i)), strings.Repeat("x", workers))
		if n != workers {
			t.Errorf("fn ran %d times for file %d", n, i)
		}
	}
}

// Somebody without the lock replaces, removes or creates the file under the writer:
// Update begins again with what is there, and Commit refuses.
func TestOutsider(t *testing.T) {
	for _, test := range []struct {
		name        string
		exists      bool
		interfere   func(path string) error
		want, after string // of Update, and after a Commit that refuses; "-" is no file
	}{
		{"replaces", true, func(path string) error {
			must(t, os.WriteFile(path+"2", []byte("theirs"), 0o600))
			return os.Rename(path+"2", path)
		}, "theirs+", "theirs"},
		{"removes", true, os.Remove, "+", "-"},
		{"creates", false, func(path string) error { return os.WriteFile(path, []byte("theirs"), 0o600) }, "theirs+", "theirs"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if runtime.GOOS == "windows" && test.exists {
				t.Skip("Windows keeps others from it while the file is open")
			}
			dir := t.TempDir()
			path := filepath.Join(dir, "file")
			begin := func() {
				os.Remove(path)
				if test.exists {
					must(t, os.WriteFile(path, []byte("old"), 0o600))
				}
			}
			begin()
			calls := 0
			must(t, lockedfile.Update(t.Context(), path, 0o600, func(old []byte) ([]byte, error) {
				if calls++; calls == 1 {
					must(t, test.interfere(path))
				}
				return append(old, '+'), nil
			}))
			if calls != 2 {
				t.Errorf("fn ran %d times", calls)
			}
			wantContent(t, path, test.want)

			begin()
			p, err := lockedfile.Replace(t.Context(), path, 0o600)
			must(t, err)
			must(t, test.interfere(path))
			err = p.Commit()
			if pe, ok := err.(*fs.PathError); !ok || pe.Op != "commit" || pe.Path != path {
				t.Errorf("Commit: %v (%T)", err, err)
			}
			if test.after == "-" {
				wantNames(t, dir)
			} else {
				wantContent(t, path, test.after)
				wantNames(t, dir, "file")
			}
		})
	}
}

// What killed writers left is removed by the next one of the same file; names of other
// files stay. So does what a note of somebody else leads to.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "file"), filepath.Join(dir, "other")
	leave := func(path, note string) (names []string) {
		mark := lockedfile.MarkOf(filepath.Base(path))
		for _, name := range []string{mark, mark + "-LEFT"} {
			must(t, os.WriteFile(filepath.Join(dir, name), []byte("part"), 0o600))
			names = append(names, name)
		}
		if runtime.GOOS != "windows" { // where there are none
			symlink(t, note, filepath.Join(dir, mark+"-note"))
			names = append(names, mark+"-note")
		}
		return names
	}
	others := leave(other, "file")
	for range 2 { // it is created, and replaced
		leave(path, lockedfile.MarkOf("file")+"-LEFT")
		must(t, lockedfile.Write(t.Context(), path, []byte("new"), 0o600))
		wantContent(t, path, "new")
		wantNames(t, dir, append(others, "file")...)
	}
	must(t, lockedfile.Write(t.Context(), other, []byte("new"), 0o600))
	wantContent(t, path, "new")
	wantContent(t, filepath.Join(dir, "other"), "new")
	if runtime.GOOS == "windows" {
		wantNames(t, dir, "file", "other")
	} else {
		wantNames(t, dir, others[1], "file", "other")
	}
}

// The first writer after the system began finds what has no note.
func TestLeftoversOfALossOfPower(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the system does not tell when it began")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, began := range []bool{true, false} {
		must(t, os.WriteFile(path, []byte("old"), 0o600))
		names := []string{lockedfile.MarkOf("file") + "-LEFT", "file"}
		must(t, os.WriteFile(filepath.Join(dir, names[0]), []byte("part"), 0o600))
		if began {
			must(t, os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0)))
			names = names[1:]
		}
		must(t, lockedfile.Write(t.Context(), path, []byte("new"), 0o600))
		wantNames(t, dir, names...)
	}
}

// A name as long as the system allows has room for the names beside it.
func TestLongName(t *testing.T) {
	dir := t.TempDir()
	name := strings.Repeat("x", 255)
	path := filepath.Join(dir, name)
	if f, err := os.Create(path); err != nil {
		t.Skip("SKIP: the file system allows no such name:", err)
	} else {
		f.Close()
	}
	must(t, lockedfile.Write(t.Context(), path, []byte("new"), 0o600))
	must(t, os.Remove(path))
	must(t, lockedfile.Write(t.Context(), path, []byte("new"), 0o600))
	wantNames(t, dir, name)
}

// Relative paths, and one in the working directory itself.
func TestRelativePath(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	must(t, lockedfile.Write(t.Context(), "file", []byte("new"), 0o600))
	must(t, os.Mkdir("sub", 0o700))
	must(t, lockedfile.Write(t.Context(), filepath.Join("sub", "file"), []byte("new"), 0o600))
	must(t, lockedfile.Write(t.Context(), filepath.Join("sub", "..", "file"), []byte("newer"), 0o600))
	wantContent(t, "file", "newer")
	wantNames(t, dir, "file", "sub")
}

// 100 MB go through in constant memory.
func TestLargeContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte("old"), 0o600))
	size := 100 << 20
	if testing.Short() {
		size = 20 << 20
	}
	piece := make([]byte, 64<<10)
	for i := range piece {
		piece[i] = byte(i)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p, err := lockedfile.Replace(t.Context(), path, 0o600)
	must(t, err)
	defer p.Close()
	for n := 0; n < size; n += len(piece) {
		if _, err := p.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	must(t, p.Commit())
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes allocated", n)
	}
	st, err := os.Stat(path)
	must(t, err)
	if st.Size() != int64(size) {
		t.Errorf("size %d", st.Size())
	}
}
