package flockctx_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/flockctx/flockctx"
)

// A trap: mode "w" of a Python library empties the file under another
// holder's lock.
func TestTruncationOnlyUnderTheLock(t *testing.T) {
	o := &flockctx.Options{Flag: os.O_RDWR | os.O_CREATE | os.O_TRUNC}
	content := []byte("content")
	path := tempPath(t)
	must(t, os.WriteFile(path, content, 0o600))
	unchanged := func() {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	holder := mustLock(t, path, nil)
	_, err := flockctx.TryLock(path, o)
	wantErr(t, err, flockctx.ErrLocked)
	unchanged()

	ctx, cancel := context.WithCancel(t.Context())
	waiting := async(func() error { _, err := flockctx.Lock(ctx, path, o); return err })
	eventually(t, "it waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
	unchanged()
	cancel()
	wantErr(t, soon(t, waiting, "Lock after cancel"), context.Canceled)
	unchanged()

	l := newHandle(t, path, o)
	waiting = async(func() error { return l.Lock(t.Context()) })
	eventually(t, "it waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
	unchanged()
	must(t, holder.Close())
	must(t, soon(t, waiting, "Lock after Close of the holder"))
	if st, err := os.Stat(path); err != nil || st.Size() != 0 {
		t.Fatalf("not truncated: %v, %v", st, err)
	}
	// The file is open now: nothing is opened again, and nothing truncated.
	_, err = l.File().Write(content)
	must(t, err)
	must(t, l.Unlock())
	must(t, l.Lock(t.Context()))
	unchanged()
}

func TestOptionsThatCannotBeMeant(t *testing.T) {
	path := tempPath(t)
	for name, o := range map[string]flockctx.Options{
		"mode":                 {Mode: 2},
		"negative mode":        {Mode: -1},
		"wait":                 {Wait: 3},
		"mechanism":            {Mechanism: 9},
		"negative range":       {Mechanism: flockctx.OFD, Start: -1},
		"range that overflows": {Mechanism: flockctx.OFD, Start: 1 << 62, Length: 1 << 62},
		"negative interval":    {Poll: flockctx.Backoff{Min: -1}},
		"permissions":          {Perm: fs.ModeDir | 0o700},
		"truncate for reading": {Flag: os.O_RDONLY | os.O_TRUNC},
		"and create":           {Flag: os.O_RDONLY | os.O_TRUNC | os.O_CREATE},
	} {
		_, err := flockctx.Lock(t.Context(), path, &o)
		if pathErr, ok := errors.AsType[*fs.PathError](err); !ok || pathErr.Path != path || errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := flockctx.LockAll(t.Context(), []string{path}, &o); err == nil {
			t.Errorf("%s: LockAll took it", name)
		}
	}
	for name, o := range map[string]flockctx.Options{
		"POSIX":           {Mechanism: flockctx.POSIX},
		"lease":           {Mechanism: flockctx.Lease},
		"range with BSD":  {Start: 1},
		"length with BSD": {Length: 1},
	} {
		_, err := flockctx.TryLock(path, &o)
		if pathErr, ok := errors.AsType[*fs.PathError](err); !ok || pathErr.Path != path || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the file was created")
	}
	wantErr(t, mustLock(t, path, nil).Convert(t.Context(), 7), errInvalid)
}

func TestOptionsAreCopied(t *testing.T) {
	path := tempPath(t)
	o := flockctx.Options{Mode: flockctx.Shared}
	l := newHandle(t, path, &o)
	o.Mode = flockctx.Exclusive
	must(t, l.Lock(t.Context()))
	wantFree(t, path, flockctx.Options{Mode: flockctx.Shared})
}

func TestPathsThatCannotBeLocked(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for name, c := range map[string]struct {
		path string
		err  error
	}{
		"empty":          {"", fs.ErrNotExist},
		"NUL":            {dir + "/a\x00b", errInvalid},
		"missing folder": {filepath.Join(dir, "missing", "x"), fs.ErrNotExist},
		"file as folder": {filepath.Join(file, "x"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			for call, err := range map[string]error{
				"Lock":    second(flockctx.Lock(t.Context(), c.path, nil)),
				"TryLock": second(flockctx.TryLock(c.path, nil)),
				"LockAll": second(flockctx.LockAll(t.Context(), []string{file, c.path}, nil)),
			} {
				pathErr, ok := errors.AsType[*fs.PathError](err)
				if !ok || pathErr.Path != c.path || pathErr.Op == "" {
					t.Fatalf("%s: got %v (%T), want an *fs.PathError with the path", call, err, err)
				}
				if c.err != nil && !errors.Is(err, c.err) {
					t.Errorf("%s: %v does not match %v", call, err, c.err)
				}
				if errors.Is(err, flockctx.ErrLocked) {
					t.Errorf("%s: %v says that the lock is taken", call, err)
				}
			}
		})
	}
	wantFree(t, file, flockctx.Options{})
}

func second[T any](_ T, err error) error { return err }

func TestLockDirectory(t *testing.T) {
	dir := t.TempDir()
	if runtime.GOOS == "windows" {
		_, err := flockctx.TryLock(dir, nil)
		wantErr(t, err, errors.ErrUnsupported)
		return
	}
	l := mustLock(t, dir, nil)
	wantLocked(t, dir, flockctx.Options{})
	if st, err := l.File().Stat(); err != nil || !st.IsDir() {
		t.Errorf("%v, %v", st, err)
	}
	must(t, l.Close())
	wantFree(t, dir, flockctx.Options{})
}

func TestPermissionsOfANewFile(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no permission bits")
	}
	for want, o := range map[fs.FileMode]*flockctx.Options{0o600: nil, 0o640: {Perm: 0o640}} {
		path := tempPath(t)
		mustLock(t, path, o)
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%v, %v, want %v", st.Mode(), err, want)
		}
	}
}

func TestFlagWithoutCreate(t *testing.T) {
	path := tempPath(t)
	_, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Flag: os.O_RDWR})
	wantErr(t, err, fs.ErrNotExist)
	must(t, os.WriteFile(path, nil, 0o600))
	l := mustLock(t, path, &flockctx.Options{Flag: os.O_WRONLY | os.O_APPEND})
	_, err = l.File().Write([]byte("x"))
	must(t, err)
	must(t, l.Close())
	_, err = flockctx.Lock(t.Context(), path, &flockctx.Options{Flag: os.O_RDWR | os.O_CREATE | os.O_EXCL})
	wantErr(t, err, fs.ErrExist)
}

func TestStrings(t *testing.T) {
	for want, got := range map[string]fmt.Stringer{
		"exclusive": flockctx.Exclusive, "shared": flockctx.Shared, "Mode(5)": flockctx.Mode(5),
		"auto": flockctx.WaitAuto, "block": flockctx.WaitBlock, "poll": flockctx.WaitPoll, "Wait(5)": flockctx.Wait(5),
		"flock": flockctx.BSD, "ofd": flockctx.OFD, "posix": flockctx.POSIX, "lease": flockctx.Lease, "Mechanism(9)": flockctx.Mechanism(9),
	} {
		if got.String() != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
