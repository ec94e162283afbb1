package lockedfile

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// maxLinks is how many symbolic links find follows, as Linux does.
const maxLinks = 40

// find returns the directory and the name of the file that path leads to, and what is
// there, or nil. The system follows what is in front of the last name. The link that
// may stand there is followed here, because it must not be replaced itself.
func find(path string) (*os.Root, string, fs.FileInfo, error) {
	at := path
	for range maxLinks {
		folder, name := filepath.Split(at)
		if name == "" || name == "." || name == ".." {
			return nil, "", nil, pathError("open", path, syscall.EISDIR)
		}
		if folder == "" {
			folder = "." + string(os.PathSeparator)
		}
		dir, err := os.OpenRoot(folder)
		if err != nil {
			return nil, "", nil, pathError("open the directory of", path, err)
		}
		info, err := lstat(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			return dir, name, nil, nil
		}
		if err == nil && info.Mode()&fs.ModeSymlink == 0 {
			return dir, name, info, nil
		}
		if err != nil {
			dir.Close()
			return nil, "", nil, pathError("stat", path, err)
		}
		link, err := dir.Readlink(name)
		dir.Close()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EINVAL) {
			return nil, "", nil, errRace // it is no link any more
		}
		if err != nil {
			return nil, "", nil, pathError("readlink", path, err)
		}
		if at = link; !filepath.IsAbs(link) {
			at = folder + link // as it is: what cleans a path does not know the links in it
		}
	}
	return nil, "", nil, pathError("open", path, errTooManyLinks)
}

var errTooManyLinks = errors.New("too many symbolic links")

// lstat says what name is of.
func lstat(dir *os.Root, name string) (info fs.FileInfo, err error) {
	err = again(func() (err error) { info, err = dir.Lstat(name); return })
	return info, err
}

// again calls fn until no signal interrupts it. Package os does the same, but not for
// all of these calls, in which FUSE and network file systems can be interrupted.
func again(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// markOf returns how the names begin that this package uses beside a file of that
// name. They are of one length, so that there is room for them where the file's own
// name is as long as the file system allows.
func markOf(name string) string {
	sum := sha256.Sum256([]byte(name))
	return ".flockctx-" + hex.EncodeToString(sum[:8])
}
