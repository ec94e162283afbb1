//go:build linux

package lockedfile

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx/lockedfile"
)

// record returns what the subject does to a disk: one that has the file ("exists"), or
// has not, and then perhaps no hard links ("no links").
func record(t *testing.T, name, disk string) recording {
	t.Helper()
	needRoot(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("SKIP: %s needs /dev/fuse", t.Name())
	}
	cmd := newCommand("powerloss", name, t.TempDir(), disk)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	must(t, err)
	var r recording
	must(t, json.Unmarshal(out, &r))
	return r
}

// imageState says what is at the file's name.
func imageState(im image, mode uint32) string {
	f, ok := im["file"]
	if !ok {
		return "none"
	}
	state := contentState(f.content)
	if f.mode != mode {
		return fmt.Sprintf("%s with mode %04o", state, f.mode)
	}
	return state
}

// Whatever a loss of power leaves of an Update, at any instant, is the old content or
// the new one, and after it returned the new one. The next Update gets that, and what
// else is left is gone after it.
func TestPowerLoss(t *testing.T) {
	for _, disk := range []string{"exists", "missing", "no links"} {
		t.Run(disk, func(t *testing.T) {
			r := record(t, subjects[0].name, disk)
			before, mode := "none", uint32(perm)
			if disk == "exists" {
				before, mode = "old", 0o640
			}
			states, tried := map[string]int{}, map[string]bool{}
			for n := r.Before; n <= len(r.Ops); n++ {
				for _, im := range imagesAfter(r.Ops, n) {
					state := imageState(im, mode)
					states[state]++
					if state != "new" && (state != before || n == len(r.Ops)) {
						t.Errorf("after %d of %d operations: %s", n, len(r.Ops), state)
					}
					if key := fmt.Sprint(im); !tried[key] {
						tried[key] = true
						restart(t, im)
					}
				}
			}
			t.Logf("%d operations, %d different images: %v", len(r.Ops)-r.Before, len(tried), states)
			if states[before] == 0 || states["new"] == 0 || len(tried) < 6 {
				t.Error("the images do not cover the way")
			}
		})
	}
}

// restart makes a directory of what the disk has, and updates the file there. What was
// in work may be there without the note of it, where the disk lost that: then it is found
// by who replaces a file that is older than the system.
func restart(t *testing.T, im image) {
	dir, err := os.MkdirTemp(t.TempDir(), "")
	must(t, err)
	defer os.RemoveAll(dir)
	notes := false
	for name, f := range im {
		at := filepath.Join(dir, name)
		if f.link != "" {
			must(t, os.Symlink(f.link, at))
			notes = true
			continue
		}
		must(t, os.WriteFile(at, []byte(f.content), fs.FileMode(f.mode)))
		must(t, os.Chtimes(at, time.Unix(1e9, 0), time.Unix(1e9, 0)))
	}
	_, exists := im["file"]
	path := filepath.Join(dir, "file")
	must(t, lockedfile.Update(context.Background(), path, perm, func(old []byte) ([]byte, error) {
		if string(old) != im["file"].content {
			t.Errorf("the next Update gets %.20q", old)
		}
		return []byte("next"), nil
	}))
	if !exists && !notes {
		must(t, os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0)))
		must(t, lockedfile.Write(context.Background(), path, nil, perm))
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}
