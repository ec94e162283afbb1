package lockedfile

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/flockctx/flockctx"
)

// What a killed writer leaves is found by its note, a symbolic link that leads to the
// name of the content in work. It is made before that, and removed after it: one system
// call each, where a look through the directory would take a microsecond for each name
// in it.
//
// A note outlives its process, but after a loss of power the content may be there
// without it: some file systems sync a file without the names around it. So the first
// to replace a file after the system began looks through the directory, and so does
// everybody where there are no symbolic links.

// note leaves a note of name, the content to come, and removes what killed writers left.
// t is held, so nobody else has content for the file in work, unless he lost it (see
// target). What cannot be removed, such as the files of others in a sticky directory,
// stays: it is in nobody's way.
func (t *target) note(name string) {
	if !lockItself { // Windows, where few may make a symbolic link
		t.sweep()
		return
	}
	if t.old != nil && t.info.ModTime().Before(systemBegan()) {
		t.sweep()
	}
	err := t.dir.Symlink(name, t.mark+noteSuffix)
	if errors.Is(err, fs.ErrExist) {
		left, _ := t.dir.Readlink(t.mark + noteSuffix)
		if t.isOurs(left) {
			t.dir.Remove(left)
		}
		if !t.marked {
			t.sweepMark()
		}
		t.dir.Remove(t.mark + noteSuffix)
		err = t.dir.Symlink(name, t.mark+noteSuffix)
	} else if err != nil {
		t.sweep()
	}
	t.noted = err == nil
}

const noteSuffix = "-note"

// forget removes the note, once what it is of is gone.
func (t *target) forget() {
	if t.noted {
		t.dir.Remove(t.mark + noteSuffix)
	}
}

// isOurs reports whether name may be of content in work, or of a note. It is no path.
func (t *target) isOurs(name string) bool {
	return strings.HasPrefix(name, t.mark+"-") && !strings.ContainsFunc(name, func(r rune) bool { return r < 0x80 && os.IsPathSeparator(uint8(r)) })
}

// sweep looks through the directory for what killed writers left.
func (t *target) sweep() {
	for {
		names, err := t.folder.Readdirnames(1024)
		for _, name := range names {
			if t.isOurs(name) {
				t.dir.Remove(name)
			} else if name == t.mark && !t.marked {
				t.sweepMark()
			}
		}
		if err != nil { // io.EOF, mostly
			return
		}
	}
}

// sweepMark removes a mark that nobody holds. Who holds it is about to find that there
// is a file, and removes it himself.
func (t *target) sweepMark() {
	l, err := flockctx.TryLock(t.inDir(t.mark), &flockctx.Options{Flag: readOnly})
	if err != nil {
		return
	}
	defer l.Close()
	locked, err := l.File().Stat()
	if err != nil {
		return
	}
	if named, err := lstat(t.dir, t.mark); err == nil && os.SameFile(locked, named) {
		t.dir.Remove(t.mark)
	}
}
