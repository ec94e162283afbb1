package flockctx_test

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/flockctx/flockctx"
)

// Handles that no function of the package has made say so.
func TestUnmadeHandles(t *testing.T) {
	for _, l := range []*flockctx.Flock{nil, new(flockctx.Flock)} {
		for op, fn := range map[string]func() error{
			"lock":    func() error { return l.Lock(t.Context()) },
			"try":     l.TryLock,
			"unlock":  l.Unlock,
			"close":   l.Close,
			"convert": func() error { return l.Convert(t.Context(), flockctx.Shared) },
			"retry":   func() error { return l.TryConvert(flockctx.Shared) },
		} {
			if err := fn(); !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "(no handle)") {
				t.Errorf("%s: %v", op, err)
			}
		}
		if s := fmt.Sprintf("%v%s %v %v %v", l, l.Name(), l.File(), l.Locked(), l.Mode()); s != "(no handle) <nil> false exclusive" {
			t.Errorf("%q", s)
		}
	}
	if err := (*flockctx.Set)(nil).Close(); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
	if files := (*flockctx.Set)(nil).Files(); files != nil {
		t.Error(files)
	}
	if text := new(flockctx.BusyError).Error(); text == "" {
		t.Error("no text")
	}
}

func TestEmptySet(t *testing.T) {
	s, err := flockctx.LockAll(t.Context(), nil, nil)
	must(t, err)
	must(t, s.Close())
	if err := s.Close(); !errors.Is(err, fs.ErrClosed) || strings.Contains(err.Error(), "close :") {
		t.Error(err)
	}
}

// %v of a handle says what it is about.
func TestString(t *testing.T) {
	path := tempPath(t)
	l := flockctx.New(path, &flockctx.Options{Mode: flockctx.Shared})
	is := func(state string) {
		t.Helper()
		if want := path + " (" + state + ")"; fmt.Sprint(l) != want {
			t.Errorf("%v; want %s", l, want)
		}
	}
	is("shared, not locked")
	must(t, l.TryLock())
	is("shared, locked")
	must(t, l.TryConvert(flockctx.Exclusive))
	is("exclusive, locked")
	must(t, l.Close())
	is("exclusive, closed")
}
