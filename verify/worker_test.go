//go:build linux

package verify

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// A plan is what a round does: all that its workers and its faults need.
type plan struct {
	Seed       uint64
	Round      int
	Base       string // where to work; empty for the test's own directory
	Dir        string
	Files      int
	Procs      int
	Goroutines int
	Millis     int
	Mechanisms []flockctx.Mechanism
	Waits      []flockctx.Wait
	SharedPct  int // how many in a hundred locks are shared
	Ranges     bool
	Convert    bool
	Remove     bool
	Fair       bool          // some goroutines stand in line with other processes
	Borrow     bool          // goroutines lock open files, most of them the same one
	Hold       time.Duration // how long at most
	Faults     []string
}

func (p plan) has(fault string) bool {
	for _, f := range p.Faults {
		if f == fault {
			return true
		}
	}
	return false
}

func (p plan) files() (paths []string) {
	for i := range p.Files {
		paths = append(paths, filepath.Join(p.Dir, "sub", fmt.Sprintf("f%d", i)))
	}
	return paths
}

// moves reports whether paths come to name other files, so that only a file has a
// lock and not a path.
func (p plan) moves() bool { return p.has("replace") }

// A workerConfig is what one worker of a round is told.
type workerConfig struct {
	Plan    plan
	First   int // number of its first client
	Stream  uint64
	History string
	Control string // "gofrs": lock with that library instead
}

func init() { helpers["worker"] = runWorker }

// A worker locks, in many goroutines, until it is told to stop.
type worker struct {
	workerConfig
	rec  recorder
	stop atomic.Bool

	mu     sync.Mutex
	common map[string]*flockctx.Flock // handles that goroutines share, by what they lock
	files  map[string]*os.File        // open files that they share, by path

	// plain are guarded by the file locks only: for the race detector, which
	// must agree that an unlock is synchronized before the next lock.
	plain map[string]*[segments][2]int

	ops atomic.Int64
}

func runWorker(raw json.RawMessage) error {
	w := &worker{common: map[string]*flockctx.Flock{}}
	if err := json.Unmarshal(raw, &w.workerConfig); err != nil {
		return err
	}
	f, err := os.OpenFile(w.History, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	w.rec.f = f
	lines := make(chan string)
	go func() {
		s := bufio.NewScanner(os.Stdin)
		for s.Scan() {
			lines <- s.Text()
		}
		os.Exit(3)
	}()
	before := measure()
	w.files, w.plain = map[string]*os.File{}, map[string]*[segments][2]int{}
	if !w.Plan.Remove && !w.Plan.moves() && w.Control == "" {
		for _, path := range w.Plan.files() {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			w.files[path] = f
			w.plain[path] = new([segments][2]int)
		}
	}
	fmt.Println("ready")
	if <-lines != "go" {
		return errors.New("not told to go")
	}
	var wg sync.WaitGroup
	bad := make(chan string, 1000)
	complain := func(format string, args ...any) {
		select {
		case bad <- fmt.Sprintf(format, args...):
		default:
		}
	}
	for i := range w.Plan.Goroutines {
		wg.Go(func() {
			c := &client{worker: w, id: w.First + i, complain: complain,
				rng: rand.New(rand.NewPCG(w.Plan.Seed, w.Stream<<32|uint64(w.Plan.Round)<<8|uint64(i)))}
			for !w.stop.Load() {
				c.operate()
				w.ops.Add(1)
			}
		})
	}
	if w.Plan.has("gc") {
		wg.Go(func() {
			for !w.stop.Load() {
				runtime.GC()
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	if w.Plan.has("procs") {
		wg.Go(func() {
			old := runtime.GOMAXPROCS(0)
			for n := 1; !w.stop.Load(); n = n%4 + 1 {
				runtime.GOMAXPROCS(n)
				time.Sleep(3 * time.Millisecond)
			}
			runtime.GOMAXPROCS(old)
		})
	}
	if w.Plan.has("children") {
		wg.Go(func() {
			for !w.stop.Load() {
				exec.Command("/bin/true").Run()
			}
		})
	}
	if w.Plan.has("emfile") {
		wg.Go(func() { w.exhaustDescriptors() })
	}
	if line := <-lines; line != "stop" {
		return fmt.Errorf("told %q", line)
	}
	w.stop.Store(true)
	wg.Wait()
	for key, l := range w.common {
		if err := l.Close(); err != nil && !w.Plan.moves() {
			complain("close of the shared handle of %s: %v", key, err)
		}
	}
	clear(w.common)
	for _, f := range w.files {
		if err := f.Close(); err != nil {
			complain("close of the shared file: %v", err)
		}
	}
	// os/exec keeps a pidfd goroutine-free; what it opened once stays open.
	if w.Plan.has("children") {
		before.Descriptors += 2
	}
	limit := before.Threads + w.Plan.Goroutines + 16
	if err := leftBehind(before, limit); err != nil {
		complain("%v", err)
	}
	close(bad)
	r := workerReport{Ops: w.ops.Load()}
	for b := range bad {
		r.Bad = append(r.Bad, b)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	fmt.Printf("idle %s\n", b)
	<-lines
	return nil
}

type workerReport struct {
	Ops int64
	Bad []string
}

// exhaustDescriptors allows no new descriptor for a moment, again and again.
func (w *worker) exhaustDescriptors() {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		return
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	for !w.stop.Load() {
		tight := old
		tight.Cur = 3
		unix.Setrlimit(unix.RLIMIT_NOFILE, &tight)
		time.Sleep(time.Millisecond)
		unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
		time.Sleep(3 * time.Millisecond)
	}
}

// A client is a goroutine that locks. Its operations follow from its seed; when
// they happen does not.
type client struct {
	*worker
	id, n    int
	rng      *rand.Rand
	complain func(string, ...any)
}

func (c *client) chance(percent int) bool { return c.rng.IntN(100) < percent }

// A target is what one operation locks.
type target struct {
	path     string
	opts     flockctx.Options
	from, to int
}

func (t target) event(op string) event {
	return event{Op: op, File: filepath.Base(t.path), Mech: t.opts.Mechanism.String(),
		Shared: t.opts.Mode == flockctx.Shared, From: t.from, To: t.to}
}

const segmentBytes = 32 // a file has a counter for each segment and mechanism

func (c *client) target() target {
	p := c.Plan
	paths := p.files()
	t := target{path: paths[c.rng.IntN(len(paths))], to: segments}
	t.opts.Mechanism = p.Mechanisms[c.rng.IntN(len(p.Mechanisms))]
	t.opts.Wait = p.Waits[c.rng.IntN(len(p.Waits))]
	t.opts.Remove = p.Remove && c.chance(50)
	t.opts.Fair = p.Fair && c.chance(70)
	t.opts.Poll = flockctx.Backoff{Min: 200 * time.Microsecond, Max: 5 * time.Millisecond}
	if c.chance(p.SharedPct) {
		t.opts.Mode = flockctx.Shared
	}
	if p.Ranges && t.opts.Mechanism == flockctx.OFD {
		t.from = c.rng.IntN(segments)
		t.to = t.from + 1 + c.rng.IntN(segments-t.from)
		t.opts.Start = int64(t.from * segmentBytes)
		if t.to < segments { // else to the end, whatever it grows to
			t.opts.Length = int64((t.to - t.from) * segmentBytes)
		}
	}
	return t
}

// context draws how the wait may end, and says until when at the latest.
func (c *client) context() (ctx context.Context, cancel context.CancelFunc, limit int64, long bool) {
	switch n := c.rng.IntN(100); {
	case n < 45:
		// Only a hang reaches it.
		d := 40 * time.Second
		limit = monotonic() + int64(d)
		ctx, cancel = context.WithTimeout(context.Background(), d)
		return ctx, cancel, limit, true
	case n < 75:
		d := time.Duration(c.rng.IntN(3000)) * time.Microsecond
		limit = monotonic() + int64(d)
		ctx, cancel = context.WithTimeout(context.Background(), d)
		return ctx, cancel, limit, false
	case n < 95:
		ctx, cancel = context.WithCancel(context.Background())
		time.AfterFunc(time.Duration(c.rng.IntN(1500))*time.Microsecond, cancel)
		return ctx, cancel, 0, false
	default:
		ctx, cancel = context.WithCancel(context.Background())
		cancel()
		return ctx, cancel, 0, false
	}
}

func (c *client) call(e event) event {
	c.n++
	e.At, e.Client, e.N = monotonic(), c.id, c.n
	c.rec.put(e)
	return e
}

func (c *client) ret(e event, err error) event {
	e.At, e.Return = monotonic(), true
	e.Result, e.Text = c.result(e.Op, err)
	c.rec.put(e)
	return e
}

// result classifies an error; what the round's faults do not explain is an "error".
func (c *client) result(op string, err error) (result, text string) {
	var busy *flockctx.BusyError
	var path *fs.PathError
	switch {
	case err == nil:
		return "ok", ""
	case op == "convert" && errors.Is(err, flockctx.ErrNotLocked):
		return "lost", ""
	case op == "convert" && (errors.As(err, &busy) || c.Plan.Convert && errors.As(err, &path)):
		return "kept", ""
	case errors.As(err, &busy) && errors.Is(err, flockctx.ErrLocked):
		if op != "try" {
			return "error", "ErrLocked from Lock: " + err.Error()
		}
		return "busy", ""
	case errors.As(err, &busy) && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)):
		if busy.Timeout() != errors.Is(err, context.DeadlineExceeded) {
			return "error", "Timeout() is wrong: " + err.Error()
		}
		return "ended", ""
	case errors.Is(err, fs.ErrClosed):
		return "closed", ""
	case errors.Is(err, errors.ErrUnsupported) && errors.As(err, &path) && strings.Contains(err.Error(), "same open file"):
		// Of one open file the kernel has one lock: a second one that would share it, or
		// whose range overlaps, is refused.
		return "refused", ""
	case c.Plan.has("emfile") && errors.Is(err, syscall.EMFILE) && errors.As(err, &path),
		c.Plan.has("replace") && errors.Is(err, fs.ErrNotExist) && errors.As(err, &path):
		return "refused", ""
	}
	return "error", err.Error()
}

// operate locks one thing, works under the lock, and unlocks it.
func (c *client) operate() {
	if c.Control != "" {
		c.operateControl()
		return
	}
	if c.chance(4) && c.Plan.Files > 1 && !c.Plan.moves() {
		c.operateSet()
		return
	}
	if c.chance(4) {
		c.operateClosed()
		return
	}
	t := c.target()
	style := c.rng.IntN(100)
	if c.Plan.Borrow && style < 80 {
		style = 99
	}
	ctx, cancel, limit, long := c.context()
	defer cancel()
	var l *flockctx.Flock
	var f *os.File
	var lock func() error
	common := false
	e := t.event("lock")
	switch {
	case style < 45: // a handle of its own
		lock = func() (err error) { l, err = flockctx.Lock(ctx, t.path, &t.opts); return err }
	case style < 65: // a handle that goroutines share
		common = true
		key := fmt.Sprintf("%+v", t)
		c.mu.Lock()
		if l = c.common[key]; l == nil {
			l = flockctx.New(t.path, &t.opts)
			c.common[key] = l
		}
		c.mu.Unlock()
		lock = func() error { return l.Lock(ctx) }
	case style < 85:
		e.Op, limit, long = "try", 0, false
		lock = func() (err error) { l, err = flockctx.TryLock(t.path, &t.opts); return err }
	default: // an open file
		t.opts.Fair = false
		if shared := c.files[t.path]; shared != nil && c.chance(60) {
			lock = func() (err error) { l, err = flockctx.LockFile(ctx, shared, &t.opts); return err }
			break
		}
		var err error
		if f, err = os.OpenFile(t.path, os.O_RDWR, 0o600); err != nil {
			return // it is not there in this moment
		}
		defer f.Close()
		if !c.Plan.Remove && !c.Plan.moves() {
			lock = func() (err error) { l, err = flockctx.LockFile(ctx, f, &t.opts); return err }
			break
		}
		return // of a file that was removed, a lock has no meaning
	}
	e.Limit, e.Long = limit, long
	e.Late = e.Op == "lock" && ctx.Err() != nil
	e = c.call(e)
	err := lock()
	if err != nil {
		c.ret(e, err)
		return
	}
	e.Shared = l.Mode() == flockctx.Shared
	e.ID = c.fileID(l.File())
	c.ret(e, nil)
	if !l.Locked() {
		c.complain("client %d: locked, and Locked says no", c.id)
	}
	shared := e.Shared
	incs := c.work(l.File(), t, shared)
	if c.Plan.Convert && !common && c.chance(30) {
		var held bool
		if shared, held = c.convert(l, t, shared, e.ID, incs); !held {
			if err := l.Close(); err != nil {
				c.complain("close after a lost convert: %v", err)
			}
			return
		}
		incs = c.work(l.File(), t, shared)
	}
	u := t.event("unlock")
	u.ID, u.Shared, u.Incs = e.ID, shared, incs
	closes := !common || c.chance(5)
	if common && closes {
		key := fmt.Sprintf("%+v", t)
		c.mu.Lock()
		if c.common[key] == l {
			delete(c.common, key)
		}
		c.mu.Unlock()
	}
	// Of a handle that others use, Close after Unlock would end their lock.
	unlockFirst := !t.opts.Remove && !common && c.chance(30)
	u = c.call(u)
	switch {
	case closes && !unlockFirst:
		err = l.Close()
	default:
		err = l.Unlock()
	}
	c.ret(u, err)
	if closes && unlockFirst {
		if err := l.Close(); err != nil {
			c.complain("close after unlock: %v", err)
		}
	}
}

// convert changes the mode and says whether the lock is still held, and how.
func (c *client) convert(l *flockctx.Flock, t target, shared bool, id string, incs int) (nowShared, held bool) {
	to := flockctx.Shared
	if shared {
		to = flockctx.Exclusive
	}
	e := t.event("convert")
	e.ID, e.Shared, e.Incs = id, shared, incs
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.rng.IntN(4000))*time.Microsecond)
	defer cancel()
	e = c.call(e)
	err := l.Convert(ctx, to)
	if err == nil {
		shared = !shared
	}
	e.Shared = shared
	e = c.ret(e, err)
	if e.Result == "lost" {
		if l.Locked() {
			c.complain("client %d: the lock is lost, and Locked says yes", c.id)
		}
		return shared, false
	}
	if got := l.Mode() == flockctx.Shared; got != shared || !l.Locked() {
		c.complain("client %d: after Convert to %v (%v) the mode is %v, locked %v", c.id, to, err, l.Mode(), l.Locked())
	}
	return shared, true
}

// operateClosed locks with a handle that another goroutine closes meanwhile. Whoever
// is first, nothing is held when both have returned.
func (c *client) operateClosed() {
	t := c.target()
	ctx, cancel, limit, long := c.context()
	defer cancel()
	l := flockctx.New(t.path, &t.opts)
	delay := time.Duration(c.rng.IntN(1500)) * time.Microsecond
	closed := make(chan error)
	e := t.event("lock")
	e.Limit, e.Long = limit, long
	e = c.call(e)
	go func() {
		time.Sleep(delay)
		closed <- l.Close()
	}()
	err := l.Lock(ctx)
	if cerr := <-closed; cerr != nil {
		c.complain("client %d: Close beside Lock: %v", c.id, cerr)
	}
	if l.Locked() {
		c.complain("client %d: locked after Close", c.id)
	}
	if err == nil {
		// It may have held the lock for a moment, of which nothing is known.
		err = fs.ErrClosed
	}
	c.ret(e, err)
}

// operateSet locks all files together.
func (c *client) operateSet() {
	t := c.target()
	t.opts.Start, t.opts.Length, t.from, t.to = 0, 0, 0, segments
	t.opts.Remove = false
	paths := c.Plan.files()
	c.rng.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	ctx, cancel, limit, long := c.context()
	defer cancel()
	var es []event
	for _, p := range paths {
		t.path = p
		e := t.event("lock")
		e.Limit, e.Long = limit, long
		es = append(es, c.call(e))
	}
	set, err := flockctx.LockAll(ctx, paths, &t.opts)
	for i := range es {
		if err == nil {
			es[i].ID = c.fileID(set.Files()[i].File())
		}
		c.ret(es[i], err)
	}
	if err != nil {
		return
	}
	for i := range es {
		t.path = paths[i]
		u := t.event("unlock")
		u.ID = es[i].ID
		u.Incs = c.work(set.Files()[i].File(), t, t.opts.Mode == flockctx.Shared)
		es[i] = c.call(u)
	}
	err = set.Close()
	for i := range es {
		c.ret(es[i], err)
	}
}

// work is the critical section: it checks the counters of the segments that are
// locked and, where the lock is exclusive, raises each in two halves.
func (c *client) work(f *os.File, t target, shared bool) (incs int) {
	mech := int64(t.opts.Mechanism)
	for seg := t.from; seg < t.to; seg++ {
		if t.to-t.from > 2 && seg > t.from && seg < t.to-1 {
			continue // the ends will do
		}
		if p := c.plain[t.path]; p != nil {
			if !shared {
				p[seg][mech]++
			} else if p[seg][mech] < 0 {
				c.complain("client %d: a negative count", c.id)
			}
		}
		at := int64(seg)*segmentBytes + mech*16
		var b [16]byte
		if _, err := f.ReadAt(b[:], at); err != nil && err.Error() != "EOF" {
			c.complain("client %d: read under the lock: %v", c.id, err)
			return incs
		}
		first, second := binary.LittleEndian.Uint64(b[:8]), binary.LittleEndian.Uint64(b[8:])
		torn := first != second
		if torn && !(c.Plan.has("kill") && first == second+1) {
			c.complain("client %d: torn counter %d/%d in segment %d of %s", c.id, first, second, seg, t.path)
		}
		if shared {
			if seg == t.from {
				c.hold()
			}
			var again [16]byte
			f.ReadAt(again[:], at)
			if again != b {
				c.complain("client %d: counter changed under the shared lock, segment %d of %s", c.id, seg, t.path)
			}
			continue
		}
		first++
		f.WriteAt(binary.LittleEndian.AppendUint64(nil, first), at)
		if seg == t.from {
			c.hold()
		}
		f.WriteAt(binary.LittleEndian.AppendUint64(nil, first), at+8)
		incs++
	}
	return incs
}

func (c *client) hold() {
	d := c.rng.Int64N(int64(c.Plan.Hold) + 1)
	switch c.rng.IntN(10) {
	case 0, 1, 2, 3, 4:
	case 5, 6:
		runtime.Gosched()
	case 7, 8:
		time.Sleep(time.Duration(d))
	default:
		time.Sleep(time.Duration(4 * d))
	}
}

// fileID identifies an open file by its handle, which has a generation beside the
// inode number that is used again.
func (c *client) fileID(f *os.File) (id string) {
	if !c.Plan.moves() || f == nil {
		return ""
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return ""
	}
	rc.Control(func(fd uintptr) {
		h, _, err := unix.NameToHandleAt(int(fd), "", unix.AT_EMPTY_PATH)
		if err != nil {
			c.complain("name_to_handle_at: %v", err)
			return
		}
		id = hex.EncodeToString(h.Bytes())
	})
	return id
}
