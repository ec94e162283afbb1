package locker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/flockctx/flockctx"
)

// Dir returns a Locker for one machine: each name is a file in dir, locked as
// flockctx.Lock does with opts, of which Mode is ignored. dir is created, as mkdir -p
// does, if it is missing when a lock is taken. The files stay, empty and unlocked,
// unless opts.Remove is set. Where a file cannot be removed, Unlock says so, and the
// lock is free all the same. A nil opts means the defaults.
//
// A name's file is the name itself where that has only a-z, 0-9, "-", "_" and inner dots;
// other bytes are escaped as %XX, and long names shortened with a hash. No name leads
// out of dir, and no two names share a file, whatever file system dir is on.
//
// On a local file system a lock is never lost while its process runs, and free as
// soon as the process ends. There is no fencing token. Waiting processes are served
// in the order that the kernel chooses. It is an [Inspector] on Linux, which knows the
// processes of all users that it may look at.
func Dir(dir string, opts *flockctx.Options) Locker {
	d := &dirLocker{dir: dir}
	if opts != nil {
		d.opts = *opts
	}
	return d
}

type dirLocker struct {
	dir  string
	opts flockctx.Options
}

func (d *dirLocker) Traits() Traits { return Traits{Shared: true} }

func (d *dirLocker) Lock(ctx context.Context, name string, m Mode) (Held, error) {
	return d.lock(ctx, name, m, func(path string, o *flockctx.Options) (*flockctx.Flock, error) {
		return flockctx.Lock(ctx, path, o)
	})
}

func (d *dirLocker) TryLock(ctx context.Context, name string, m Mode) (Held, error) {
	return d.lock(ctx, name, m, flockctx.TryLock)
}

func (d *dirLocker) lock(ctx context.Context, name string, m Mode, take func(string, *flockctx.Options) (*flockctx.Flock, error)) (Held, error) {
	o := d.opts
	o.Mode = m
	path := filepath.Join(d.dir, fileName(name))
	if ctx.Err() != nil {
		_, err := flockctx.Lock(ctx, path, &o) // the error that is due, before any other
		return nil, err
	}
	err := CheckName(name)
	if err == nil && m != Exclusive && m != Shared {
		err = fmt.Errorf("mode %v: %w", m, errors.ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("locker: lock %.64q: %w", name, err)
	}
	f, err := take(path, &o)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(d.dir, 0o777); err != nil {
			return nil, fmt.Errorf("locker: lock %.64q: %w", name, err)
		}
		f, err = take(path, &o)
	}
	if err != nil {
		return nil, err
	}
	h := &dirHeld{file: f}
	h.ctx, h.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	return h, nil
}

// Holders tells what the kernel knows, on Linux; elsewhere the error matches
// errors.ErrUnsupported.
func (d *dirLocker) Holders(ctx context.Context, name string) ([]Holder, error) {
	err := CheckName(name)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("locker: holders of %.64q: %w", name, err)
	}
	files, err := flockctx.Holders(filepath.Join(d.dir, fileName(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nobody has locked it yet
	}
	host, _ := os.Hostname()
	var all []Holder
	for _, f := range files {
		all = append(all, Holder{Mode: f.Mode, Waiting: f.Waiting, Host: host, PID: f.PID, Note: f.Command})
	}
	return all, err
}

type dirHeld struct {
	file   *flockctx.Flock
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu   sync.Mutex // guards the fields below
	done bool       // the lock is released
	err  error      // valid once done is set
}

func (h *dirHeld) Context() context.Context      { return h.ctx }
func (h *dirHeld) Valid() (_ time.Time, ok bool) { return time.Time{}, false }
func (h *dirHeld) Token() (_ Token, ok bool)     { return Token{}, false }

// Unlock needs no server and so no time: it releases whatever ctx says.
func (h *dirHeld) Unlock(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done {
		return h.err
	}
	h.cancel(ErrReleased)
	err := h.file.Close()
	if errors.Is(err, fs.ErrClosed) {
		err = nil
	}
	if err != nil {
		// It may only be that opts.Remove cannot be done. Few call Unlock again, so
		// the lock must not wait for that.
		if uerr := h.file.Unlock(); uerr != nil && !errors.Is(uerr, fs.ErrClosed) {
			return uerr
		}
		h.file.Close()
	}
	h.done, h.err = true, err
	return err
}

// maxFileName is what every common file system can store.
const maxFileName = 255

// fileName returns the file's name for a lock's name: another one for each, also where
// the file system ignores case. That is no question of the operating system: vfat, CIFS
// and folders of ext4 do so on Linux.
func fileName(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_',
			c == '.' && i > 0 && i < len(name)-1:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	s := b.String()
	if isDevice(s) {
		s = fmt.Sprintf("%%%02X", s[0]) + s[1:]
	}
	if len(s) > maxFileName {
		sum := sha256.Sum256([]byte(name))
		// No escape begins with "%=", so no other name leads here.
		tail := "%=" + hex.EncodeToString(sum[:])
		s = s[:maxFileName-len(tail)] + tail
	}
	return s
}

// isDevice reports whether Windows would open a device instead of a file.
func isDevice(s string) bool {
	base, _, _ := strings.Cut(strings.ToLower(s), ".")
	switch base {
	case "con", "prn", "aux", "nul":
		return true
	}
	return len(base) == 4 && (base[:3] == "com" || base[:3] == "lpt") && '0' <= base[3] && base[3] <= '9'
}
