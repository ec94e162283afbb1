//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"github.com/flockctx/flockctx"
)

// Locks of an open file that another process inherits, which no handle of this
// process knows: they are UnlockFile's.

// inherit runs a command in a process that has f as its descriptor 3.
func inherit(t *testing.T, f *os.File, command string, o flockctx.Options) {
	t.Helper()
	cmd := newCommand(t, command, []string{fmt.Sprint(int(o.Mechanism)), fmt.Sprint(o.Start), fmt.Sprint(o.Length)})
	cmd.ExtraFiles = []*os.File{f}
	if out, err := cmd.Output(); err != nil {
		t.Fatalf("%s: %v %s", command, err, out)
	}
}

func inheritedFile(args []string) (f *os.File, o flockctx.Options, err error) {
	for i, p := range []any{(*int)(&o.Mechanism), &o.Start, &o.Length} {
		if _, err := fmt.Sscan(args[i], p); err != nil {
			return nil, o, err
		}
	}
	return os.NewFile(3, "inherited"), o, nil
}

// lock-inherited locks, and ends without an Unlock: the lock stays with the process
// that it inherited the file from.
var _ = registerCommand("lock-inherited", func(args []string) error {
	f, o, err := inheritedFile(args)
	if err == nil {
		_, err = flockctx.LockFile(context.Background(), f, &o)
	}
	return err
})

var _ = registerCommand("unlock-inherited", func(args []string) error {
	f, o, err := inheritedFile(args)
	if err == nil {
		err = flockctx.UnlockFile(f, &o)
	}
	return err
})

func TestUnlockFileOfAnInheritedLock(t *testing.T) {
	for _, mechanism := range mechanisms() {
		for _, child := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v,by a child=%v", mechanism, child), func(t *testing.T) {
				path := tempPath(t)
				f, err := os.Create(path)
				must(t, err)
				defer f.Close()
				o := flockctx.Options{Mechanism: mechanism}
				inherit(t, f, "lock-inherited", o)
				wantLocked(t, path, o)
				if child {
					inherit(t, f, "unlock-inherited", o)
				} else {
					must(t, flockctx.UnlockFile(f, &o))
				}
				wantFree(t, path, o)
				must(t, flockctx.UnlockFile(f, &o)) // without a lock it does nothing
				wantFree(t, path, o)
				if _, err := f.WriteString("x"); err != nil {
					t.Errorf("the file was closed: %v", err)
				}
			})
		}
	}
}

// UnlockFile releases its range, and what lies beside it stays locked.
func TestUnlockFileOfARange(t *testing.T) {
	if len(mechanisms()) == 1 {
		t.Skip("no OFD locks")
	}
	at := func(start, length int64) flockctx.Options {
		return flockctx.Options{Mechanism: flockctx.OFD, Start: start, Length: length}
	}
	path := tempPath(t)
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	inherit(t, f, "lock-inherited", at(10, 10))
	inherit(t, f, "lock-inherited", at(30, 10))
	o := at(10, 10)
	must(t, flockctx.UnlockFile(f, &o))
	wantFree(t, path, at(0, 30))
	wantLocked(t, path, at(30, 1))
	wantLocked(t, path, at(39, 0))
	o = at(0, 0) // to the end
	must(t, flockctx.UnlockFile(f, &o))
	wantFree(t, path, at(0, 0))
}

func TestUnlockFileThatFails(t *testing.T) {
	wantPathError := func(err error, path string, target error) {
		t.Helper()
		if pathErr, ok := err.(*fs.PathError); !ok || pathErr.Op != "unlock" || pathErr.Path != path || !errors.Is(err, target) {
			t.Errorf("%#v, want an *fs.PathError of unlock and %q that matches %v", err, path, target)
		}
	}
	path := tempPath(t)
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	wantPathError(flockctx.UnlockFile(f, &flockctx.Options{Start: 1}), path, errors.ErrUnsupported)
	must(t, f.Close())
	wantPathError(flockctx.UnlockFile(f, nil), path, fs.ErrClosed)
	wantPathError(flockctx.UnlockFile(nil, nil), "", os.ErrInvalid)
}
