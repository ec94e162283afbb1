package main

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/flockctx/flockctx"
)

// lockAndRun takes the lock, and runs the command if there is one. The lock is not
// released: it goes with the last descriptor, which a child of the command may have.
func (c *command) lockAndRun(ctx context.Context, o *options) int {
	started := time.Now()
	l := &lock{command: c, options: o, started: started}
	var code int
	switch {
	case !o.named:
		code = l.descriptor(ctx)
	case o.unlock || o.timeout.invalid:
		code = l.openOnly()
	case o.slots > 0:
		code = l.slot(ctx)
	case len(o.also) > 0:
		code = l.several(ctx)
	default:
		code = l.path(ctx)
	}
	if code != exitOK || l.ended {
		return code
	}
	if o.timeout.invalid {
		c.say("cannot set up timer: %v", reason(syscall.EINVAL))
		return exitSystem
	}
	if o.verbose {
		c.say("getting %s took %.6f seconds", l.what(), time.Since(started).Seconds())
	}
	if o.command == nil {
		return exitOK
	}
	if o.verbose {
		c.say("executing %s", o.command[0])
	}
	for _, f := range l.files {
		if err := setInherited(f, !o.close); err != nil {
			c.say("%s: %v", f.Name(), reason(err))
			return exitSystem
		}
	}
	if o.noFork {
		return c.replace(o.command)
	}
	if o.close && !o.named {
		c = c.without(o.fd)
	}
	code = c.run(o.command)
	if o.remove {
		l.remove()
	}
	return code
}

// A lock is one or more locks as options say.
type lock struct {
	*command
	*options
	started time.Time
	handles []*flockctx.Flock // on the files that were named
	files   []*os.File        // that have the locks
	ended   bool              // with status 0 all the same, by -E 0
}

// request returns the options of the lock. A file is opened as flock(1) does: for
// reading only, unless the lock needs more.
func (l *lock) request() *flockctx.Options {
	r := &flockctx.Options{Mode: l.mode, Perm: 0o666, Flag: os.O_RDONLY | os.O_CREATE}
	if l.fcntl {
		r.Mechanism, r.Start, r.Length = flockctx.OFD, l.start, l.length
		if l.mode == flockctx.Exclusive && !l.unlock {
			r.Flag = os.O_WRONLY | os.O_CREATE
		}
	}
	return r
}

func (l *lock) openFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, l.request().Flag|noTTY, 0o666)
	if errors.Is(err, syscall.EISDIR) {
		f, err = os.Open(name)
	}
	return f, err
}

// openOnly opens the file and takes no lock.
func (l *lock) openOnly() int {
	f, err := l.openFile(l.options.path)
	if err != nil {
		return l.failure(err)
	}
	l.files = []*os.File{f}
	return exitOK
}

// path locks the file that was named.
func (l *lock) path(ctx context.Context) int {
	name, r := l.options.path, l.request()
	if fi, err := os.Stat(name); err == nil && !fi.Mode().IsRegular() && !fi.IsDir() {
		// A device, say: it has no other name to be verified by, and no content. Some
		// do something when they are opened, so this is done once.
		f, err := l.openFile(name)
		if err != nil {
			return l.failure(err)
		}
		return l.file(ctx, f)
	}
	h := flockctx.New(name, r)
	err := h.TryLock()
	switch {
	case errors.Is(err, syscall.EISDIR):
		r.Flag = directory
		h = flockctx.New(name, r)
		err = h.TryLock()
	case errors.Is(err, syscall.EBADF):
		// NFS makes the lock one that needs the file open for writing.
		r.Flag = os.O_RDWR | os.O_CREATE
		h = flockctx.New(name, r)
		err = h.TryLock()
	}
	if err != nil {
		if code := l.wait(ctx, err, []string{name}, h.Lock); code != exitOK || l.ended {
			return code
		}
	}
	l.hold(h)
	return exitOK
}

// descriptor locks an inherited descriptor.
func (l *lock) descriptor(ctx context.Context) int {
	if l.timeout.invalid { // that is found out first
		return exitOK
	}
	number := l.fd
	name := strconv.Itoa(number)
	if number == noFD {
		name = "-1"
	}
	f := inherited(number, name)
	if f == nil {
		l.say("%s: %v", name, reason(syscall.EBADF))
		return exitData
	}
	return l.file(ctx, f)
}

func (l *lock) file(ctx context.Context, f *os.File) int {
	r := l.request()
	l.files = []*os.File{f}
	if l.unlock {
		if err := flockctx.UnlockFile(f, r); err != nil {
			return l.failure(err)
		}
		return exitOK
	}
	_, err := flockctx.TryLockFile(f, r)
	if err == nil {
		return exitOK
	}
	name := l.options.path
	if !l.named {
		name = descriptors + strconv.Itoa(int(f.Fd()))
	}
	return l.wait(ctx, err, []string{name}, func(ctx context.Context) error {
		_, err := flockctx.LockFile(ctx, f, r)
		return err
	})
}

// several locks several files, all or none.
func (l *lock) several(ctx context.Context) int {
	paths := append([]string{l.options.path}, l.also...)
	r := l.request()
	if l.fcntl {
		r.Flag = 0 // there may be directories and files among them
	} else {
		// For reading, as flock(1) does: a script that is open for writing cannot be
		// executed. The library would not create a file with what opens a directory.
		r.Flag = readOnly
	}
	create := func() error {
		for _, p := range paths {
			if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
			f, err := l.openFile(p)
			if err != nil {
				return err
			}
			f.Close()
		}
		return nil
	}
	try := func() error {
		var held []*flockctx.Flock
		for _, p := range paths {
			h, err := flockctx.TryLock(p, r)
			if err != nil {
				if errors.Is(err, flockctx.ErrLocked) && isOneOf(p, held) {
					continue
				}
				for _, h := range held {
					h.Close()
				}
				return err
			}
			held = append(held, h)
		}
		l.hold(held...)
		return nil
	}
	err := try()
	if errors.Is(err, fs.ErrNotExist) {
		if err = create(); err == nil {
			err = try()
		}
	}
	if errors.Is(err, syscall.EBADF) {
		r.Flag = 0 // NFS makes the lock one that needs the file open for writing
		err = try()
	}
	if err == nil {
		return exitOK
	}
	return l.wait(ctx, err, paths, func(ctx context.Context) error {
		for {
			set, err := flockctx.LockAll(ctx, paths, r)
			if err == nil {
				l.hold(set.Files()...)
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			// One was removed, by its holder perhaps.
			if err := create(); err != nil {
				return err
			}
		}
	})
}

func (l *lock) hold(handles ...*flockctx.Flock) {
	l.handles = handles
	for _, h := range handles {
		l.files = append(l.files, h.File())
	}
}

// isOneOf reports whether path is another name of a file that is held.
func isOneOf(path string, held []*flockctx.Flock) bool {
	fi, err := os.Stat(path)
	if err != nil {
		return false
	}
	for _, h := range held {
		if x, err := h.File().Stat(); err == nil && os.SameFile(fi, x) {
			return true
		}
	}
	return false
}

// wait waits by calling take, where err says that the lock is taken and the options
// allow it. It returns the exit status.
func (l *lock) wait(ctx context.Context, err error, paths []string, take func(context.Context) error) int {
	if !errors.Is(err, flockctx.ErrLocked) {
		return l.failure(err)
	}
	if l.nonblock || l.timeout.set && l.timeout.d == 0 {
		if l.verbose {
			l.say("failed to get %s%s", l.wanted(names(paths)), after(": held by ", heldByNow(paths, l.inTheWay)))
		}
		l.ended = true
		return l.conflict
	}
	if l.timeout.set && l.timeout.d < math.MaxInt64 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, l.started.Add(l.timeout.d))
		defer cancel()
	}
	done := l.watch(paths)
	err = interruptible(ctx, take)
	done()
	var sig signalError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &sig):
		interrupted.Store(int32(sig.signal))
		return 128 + int(sig.signal)
	case errors.Is(err, context.DeadlineExceeded):
		if l.verbose {
			l.say("timeout while waiting to get %s%s", l.wanted(names(paths)), after(": held by ", heldByNow(paths, l.inTheWay)))
		}
		l.ended = true
		return l.conflict
	case errors.Is(err, context.Canceled):
		l.say("%v", err)
		return exitSystem
	}
	return l.failure(err)
}

func after(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// opened reports whether err comes from opening the file.
func opened(err error) bool {
	pe, ok := errors.AsType[*fs.PathError](err)
	return ok && pe.Op == "open"
}

// failure reports err and returns the exit status that flock(1) has for it.
func (l *lock) failure(err error) int {
	is := func(errnos ...error) bool {
		for _, e := range errnos {
			if errors.Is(err, e) {
				return true
			}
		}
		return false
	}
	name := l.options.path
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		name = pe.Path
	}
	if opened(err) {
		l.say("cannot open lock file %s: %v", name, reason(err))
		switch {
		case is(syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE):
			return exitSystem
		case is(syscall.EROFS, syscall.ENOSPC):
			return exitCantCreate
		}
		return exitNoInput
	}
	l.say("%s: %v", name, reason(err))
	if is(syscall.ENOLCK, syscall.ENOMEM) {
		return exitSystem
	}
	return exitData
}

// reason returns err's text without the operation and the path.
func reason(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	text := err.Error()
	if errors.Is(err, syscall.EBADF) {
		return "Bad file descriptor"
	}
	if _, ok := err.(syscall.Errno); ok && text != "" {
		text = strings.ToUpper(text[:1]) + text[1:]
	}
	return text
}

// shell is what -c runs its command with.
func shell() string {
	if s := os.Getenv("SHELL"); s != "" {
		return s
	}
	return "/bin/sh"
}

// search returns the files that execvp(3) would try for a command.
func search(name string) (found []string) {
	if filepath.Separator != '/' { // no execvp(3) either
		if p, err := exec.LookPath(name); err == nil || errors.Is(err, exec.ErrDot) {
			found = append(found, p)
		}
		return found
	}
	if strings.ContainsRune(name, '/') || name == "" {
		return []string{name}
	}
	path, ok := os.LookupEnv("PATH")
	if !ok {
		path = "/bin:/usr/bin"
	}
	for dir := range strings.SplitSeq(path, ":") {
		p := filepath.Join(dir, name)
		if dir == "" || dir == "." {
			p = "./" + name
		}
		if fi, err := os.Stat(p); err == nil && !fi.IsDir() {
			found = append(found, p)
		}
	}
	return found
}

// execute calls start for the files that could be the command, as execvp(3) does,
// until one is executed. A script without a first line that says by what is one of
// /bin/sh.
func (c *command) execute(argv []string, start func(path string, argv []string) error) error {
	failure := error(syscall.ENOENT)
	for _, path := range search(argv[0]) {
		err := start(path, argv)
		if errors.Is(err, syscall.ENOEXEC) {
			err = start("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...))
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EACCES):
			failure = err
		case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ESTALE),
			errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ETIMEDOUT):
		default:
			return err
		}
	}
	return failure
}

func (c *command) cannotExecute(name string, err error) int {
	c.say("failed to execute %s: %v", name, reason(err))
	if errors.Is(err, syscall.ENOMEM) {
		return exitSystem
	}
	return exitUnavailable
}

// without returns a command that does not pass on the standard descriptor of this
// number. (Its command has it on /dev/null.) os/exec passes on the others whatever
// their flags.
func (c *command) without(fd int) *command {
	w := *c
	switch fd {
	case 0:
		w.stdin = nil
	case 1:
		w.stdout = nil
	case 2:
		w.stderr = nil
	}
	return &w
}

// run runs a command and returns its exit status.
func (c *command) run(argv []string) int {
	var cmd *exec.Cmd
	err := c.execute(argv, func(path string, argv []string) error {
		cmd = &exec.Cmd{Path: path, Args: argv, Stdin: c.stdin, Stdout: c.stdout, Stderr: c.stderr}
		return cmd.Start()
	})
	if err != nil {
		if errors.Is(err, syscall.EAGAIN) {
			c.say("fork failed: %v", reason(err))
			return exitSystem
		}
		return c.cannotExecute(argv[0], err)
	}
	err = cmd.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		c.say("%s: %v", argv[0], reason(err))
	}
	return status(cmd.ProcessState)
}

// replace executes a command in place of this process.
func (c *command) replace(argv []string) int {
	err := c.execute(argv, func(path string, argv []string) error {
		return syscall.Exec(path, argv, os.Environ())
	})
	return c.cannotExecute(argv[0], err)
}

// remove removes the lock files, unless somebody has the lock: a process that the
// command left behind, or another one that waited for it. So this one's descriptor
// is closed without unlocking, which leaves the lock to a child that inherited it,
// and the file removed under a lock that is taken anew. A file that has taken the
// place of the one that was locked is somebody else's, and stays.
func (l *lock) remove() {
	r := l.request()
	r.Mode = flockctx.Exclusive
	r.Flag = readOnly
	if l.fcntl {
		r.Flag = os.O_RDWR
	}
	for _, old := range l.handles {
		name := old.Name()
		was, err := old.File().Stat()
		if err != nil || was.IsDir() {
			continue
		}
		if is, err := os.Stat(name); err != nil || !os.SameFile(was, is) {
			continue
		}
		release := keepInode(old.File())
		old.File().Close()
		old.Close() // only says that the file is closed
		h, err := flockctx.TryLock(name, r)
		if err == nil {
			if is, serr := h.File().Stat(); serr == nil && os.SameFile(was, is) {
				err = os.Remove(name)
			}
			h.Close()
		}
		release()
		switch {
		case errors.Is(err, flockctx.ErrLocked):
			if l.verbose {
				l.say("%s is locked, and was not removed%s", name, after(": held by ", heldByNow([]string{name}, func(h flockctx.Holder) bool { return inTheWay(h, r) })))
			}
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			l.say("cannot remove %s: %v", name, reason(err))
		}
	}
}
