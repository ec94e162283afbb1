//go:build linux

package lockedfile

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A file system of one directory that records what is done to it, so that what a loss
// of power may leave can be worked out: a disk need not have what was not synced.
//
// A file's content and mode are safe once the file was synced, and what the names are
// of once the directory was. Of the changes after that each may have reached the disk
// or not, whatever their order; a rename is one change; of new content there may be a
// part, or zeros in its place. That is less than any file system of today promises, and
// all that POSIX does.

// A diskOp is one thing that was done.
type diskOp struct {
	Names map[string]int // what the names are of now, 0 for nothing
	File  int            // that has now
	Data  []byte         // this content
	Mode  uint32         // and mode
	Link  string         // or is a symbolic link to this, which has all of it from the beginning
	Sync  int            // this file was synced; syncDir is the directory
}

const syncDir = -1

// An image is what a disk may have: for each name, the content and mode.
type image map[string]imageFile

type imageFile struct {
	content string
	mode    uint32
	link    string // of a symbolic link
}

// imagesAfter returns what the disk may have after the first n operations of ops. The
// first ones, up to a sync of the directory, made the files that were there before.
func imagesAfter(ops []diskOp, n int) []image {
	ops = ops[:n]
	safeNames, pending := map[string]int{}, []map[string]int{}
	apply := func(m, change map[string]int) {
		for name, file := range change {
			if m[name] = file; file == 0 {
				delete(m, name)
			}
		}
	}
	safe, now := map[int]diskOp{}, map[int]diskOp{}
	for _, op := range ops {
		switch {
		case op.Names != nil:
			pending = append(pending, op.Names)
		case op.Sync == syncDir:
			for _, change := range pending {
				apply(safeNames, change)
			}
			pending = nil
		case op.Sync != 0:
			safe[op.Sync] = now[op.Sync]
		default:
			if _, ok := safe[op.File]; !ok {
				safe[op.File] = diskOp{Mode: op.Mode} // as it was created
			}
			now[op.File] = op
		}
	}
	var all []image
	for subset := range 1 << len(pending) {
		names := maps.Clone(safeNames)
		for i, change := range pending {
			if subset&(1<<i) != 0 {
				apply(names, change)
			}
		}
		for variant := range 5 {
			im := image{}
			for name, file := range names {
				s, n := safe[file], now[file]
				data, mode := s.Data, n.Mode
				if variant == 0 {
					mode = s.Mode
				}
				if string(data) != string(n.Data) {
					switch variant {
					case 2:
						data = n.Data
					case 3:
						data = n.Data[:len(n.Data)/2]
					case 4:
						data = make([]byte, len(n.Data))
					}
				}
				im[name] = imageFile{string(data), mode, n.Link}
			}
			all = append(all, im)
		}
	}
	return all
}

// recordDisk mounts the file system, in a mount namespace of its own, has a subject
// write in it, and prints what was done.
func recordDisk(args []string) error {
	name, dir, begin := args[0], args[1], args[2]
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	d := &disk{noLinks: begin == "no links"}
	root := &diskDir{disk: d}
	var none time.Duration
	server, err := fs.Mount(dir, root, &fs.Options{EntryTimeout: &none, AttrTimeout: &none, NegativeTimeout: &none,
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "disk", Name: "disk"}})
	if err != nil {
		return err
	}
	defer server.Unmount()
	if begin == "exists" {
		d.mu.Lock()
		f := d.newFile(0o640)
		f.data = []byte(oldContent)
		d.record(diskOp{File: f.number, Data: f.data, Mode: f.mode})
		d.record(diskOp{Sync: f.number})
		d.record(diskOp{Names: map[string]int{"file": f.number}})
		d.mu.Unlock()
		root.AddChild("file", root.NewPersistentInode(context.Background(), f, fs.StableAttr{Mode: fuse.S_IFREG, Ino: uint64(f.number) + 1}), false)
	}
	d.record(diskOp{Sync: syncDir})
	d.mu.Lock()
	before := len(d.ops)
	d.mu.Unlock()
	cmd := newCommand("write", name, dir+"/file", "")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return json.NewEncoder(os.Stdout).Encode(recording{before, d.ops})
}

// A recording is what recordDisk prints: the operations, the first Before of which are
// not the subject's.
type recording struct {
	Before int
	Ops    []diskOp
}

type disk struct {
	mu      sync.Mutex
	ops     []diskOp
	last    int  // number of a file
	noLinks bool // files say that they have none, as on some FUSE file systems; then link(2) is ENOENT
}

func (d *disk) record(op diskOp) { d.ops = append(d.ops, op) }

func (d *disk) newFile(mode uint32) *diskFile {
	d.last++
	return &diskFile{disk: d, number: d.last, mode: mode & 0o7777}
}

type diskDir struct {
	fs.Inode
	disk *disk
}

func (r *diskDir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = fuse.S_IFDIR | 0o755
	return 0
}

func (r *diskDir) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	if r.GetChild(name) != nil {
		return nil, nil, 0, syscall.EEXIST
	}
	f := r.disk.newFile(mode)
	r.disk.record(diskOp{File: f.number, Mode: f.mode})
	r.disk.record(diskOp{Names: map[string]int{name: f.number}})
	f.fill(&out.Attr)
	return r.NewPersistentInode(ctx, f, fs.StableAttr{Mode: fuse.S_IFREG, Ino: uint64(f.number) + 1}), nil, 0, 0
}

func (r *diskDir) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	if r.GetChild(name) != nil {
		return nil, syscall.EEXIST
	}
	f := target.(*diskFile)
	r.disk.record(diskOp{Names: map[string]int{name: f.number}})
	f.fill(&out.Attr)
	return target.EmbeddedInode(), 0
}

func (r *diskDir) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	if r.GetChild(name) != nil {
		return nil, syscall.EEXIST
	}
	f := r.disk.newFile(0o777)
	r.disk.record(diskOp{File: f.number, Mode: f.mode, Link: target})
	r.disk.record(diskOp{Names: map[string]int{name: f.number}})
	link := &fs.MemSymlink{Data: []byte(target)}
	return r.NewPersistentInode(ctx, link, fs.StableAttr{Mode: fuse.S_IFLNK, Ino: uint64(f.number) + 1}), 0
}

func (r *diskDir) Unlink(_ context.Context, name string) syscall.Errno {
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	r.disk.record(diskOp{Names: map[string]int{name: 0}})
	return 0
}

func (r *diskDir) Rename(_ context.Context, name string, _ fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	if flags != 0 {
		return syscall.EINVAL
	}
	f := r.GetChild(name).Operations().(*diskFile)
	r.disk.record(diskOp{Names: map[string]int{name: 0, newName: f.number}})
	return 0
}

func (r *diskDir) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	r.disk.record(diskOp{Sync: syncDir})
	return 0
}

type diskFile struct {
	fs.Inode
	disk   *disk
	number int
	data   []byte
	mode   uint32
}

func (f *diskFile) fill(out *fuse.Attr) {
	out.Mode, out.Size, out.Ino, out.Nlink = fuse.S_IFREG|f.mode, uint64(len(f.data)), uint64(f.number)+1, 1
	if f.disk.noLinks {
		out.Nlink = 0
	}
}

// changed records the content and mode.
func (f *diskFile) changed() {
	f.disk.record(diskOp{File: f.number, Data: append([]byte(nil), f.data...), Mode: f.mode})
}

func (f *diskFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.fill(&out.Attr)
	return 0
}

func (f *diskFile) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if mode, ok := in.GetMode(); ok {
		f.mode = mode & 0o7777
	}
	if size, ok := in.GetSize(); ok {
		f.resize(int(size))
	}
	f.changed()
	f.fill(&out.Attr)
	return 0
}

func (f *diskFile) resize(size int) {
	if size > len(f.data) {
		f.data = append(f.data, make([]byte, size-len(f.data))...)
	}
	f.data = f.data[:size]
}

func (f *diskFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (f *diskFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	from := min(int(off), len(f.data))
	return fuse.ReadResultData(append([]byte(nil), f.data[from:min(from+len(dest), len(f.data))]...)), 0
}

func (f *diskFile) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.resize(max(len(f.data), int(off)+len(data)))
	copy(f.data[off:], data)
	f.changed()
	return uint32(len(data)), 0
}

func (f *diskFile) Flush(context.Context, fs.FileHandle) syscall.Errno { return 0 }

func (f *diskFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.disk.record(diskOp{Sync: f.number})
	return 0
}
