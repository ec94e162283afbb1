package flockctx_test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/flockctx/flockctx"
)

func TestHoldersOfNothing(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "missing"), ""} {
		_, err := flockctx.Holders(path)
		if pe, ok := errors.AsType[*fs.PathError](err); !ok || pe.Path != path {
			t.Errorf("Holders(%q) = %v; want a PathError with that path", path, err)
		}
		if runtime.GOOS == "linux" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Holders(%q) = %v; want %v", path, err, fs.ErrNotExist)
		}
	}
	dir := t.TempDir()
	hs, err := flockctx.Holders(dir)
	if runtime.GOOS != "linux" {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Holders = %v; want %v", err, errors.ErrUnsupported)
		}
		return
	}
	if err != nil || len(hs) != 0 {
		t.Errorf("Holders of an unlocked directory = %+v, %v; want none", hs, err)
	}
}
