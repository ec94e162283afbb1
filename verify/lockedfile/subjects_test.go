//go:build linux

package lockedfile

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"

	"github.com/flockctx/flockctx/lockedfile"
	"github.com/google/renameio/v2"
	"github.com/moby/sys/atomicwriter"
	"github.com/natefinch/atomic"
	lockedfilego "github.com/rogpeppe/go-internal/lockedfile"
)

// perm is what the subjects are told that a new file shall have, where they ask.
const perm = 0o604

// A subject replaces the content of a file by newContent.
type subject struct {
	name   string
	write  func(path string, data []byte) error
	update func(path string, fn func([]byte) ([]byte, error)) error // nil where it has none
}

var subjects = []subject{
	{"flockctx/lockedfile",
		func(path string, data []byte) error {
			return lockedfile.Write(context.Background(), path, data, perm)
		},
		func(path string, fn func([]byte) ([]byte, error)) error {
			return lockedfile.Update(context.Background(), path, perm, fn)
		},
	},
	{"google/renameio", func(path string, data []byte) error { return renameio.WriteFile(path, data, perm) }, nil},
	{"moby atomicwriter", func(path string, data []byte) error { return atomicwriter.WriteFile(path, data, perm) }, nil},
	// Not bytes.Reader, which io.Copy would write in one piece, as no file is read.
	{"natefinch/atomic", func(path string, data []byte) error {
		return atomic.WriteFile(path, struct{ io.Reader }{bytes.NewReader(data)})
	}, nil},
	{"Go's lockedfile, Write",
		func(path string, data []byte) error {
			return lockedfilego.Write(path, struct{ io.Reader }{bytes.NewReader(data)}, perm)
		}, nil},
	{"Go's lockedfile, Transform",
		func(path string, data []byte) error {
			return lockedfilego.Transform(path, func([]byte) ([]byte, error) { return data, nil })
		},
		lockedfilego.Transform,
	},
	{"os.WriteFile", func(path string, data []byte) error { return os.WriteFile(path, data, perm) }, nil},
}

func subjectNamed(name string) *subject {
	for i := range subjects {
		if subjects[i].name == name {
			return &subjects[i]
		}
	}
	panic("no subject " + name)
}

// The new content is the longer one, and of some pages.
var oldContent, newContent = strings.Repeat("old ", 5000), strings.Repeat("new! ", 20000)

// contentState says what of the two content is.
func contentState(content string) string {
	switch content {
	case oldContent:
		return "old"
	case newContent:
		return "new"
	case "":
		return "empty"
	}
	return "part"
}
