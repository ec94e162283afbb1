package flockdebug

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/flockctx/flockctx"
)

// gather returns how it is now. What is recorded and what Snapshot says are of different
// moments: a lock that comes or goes in between may seem to be one that was taken before
// the recording.
func (r *recorder) gather() *state {
	s := &state{Program: filepath.Base(os.Args[0]), PID: os.Getpid(), Held: []lock{}, Waiting: []lock{}, Others: []peer{}}
	asked := system.begin()
	before := claims{}
	for _, e := range r.entries() {
		before[e.claim()]++
	}
	infos := flockctx.Snapshot()
	entries := r.entries()
	s.Time = time.Now()
	r.mu.Lock()
	if r.starts > 0 {
		since := r.since
		s.Recording = &since
	}
	r.mu.Unlock()

	after := claims{}
	for _, e := range entries {
		after[e.claim()]++
		if e.waits {
			s.Waiting = append(s.Waiting, e.lock(s.Time))
		} else {
			s.Held = append(s.Held, e.lock(s.Time))
		}
	}
	// What Snapshot has beyond that began before the recording.
	for _, h := range infos {
		c := claim{fileOf(h.Path, h.Mechanism, h.Start, h.Length), h.Mode, false}
		if h.Locked && !before.take(after, c) {
			s.Held = append(s.Held, lock{file: c.file, Mode: c.mode.String()})
		}
		c.waits = true
		for range h.Waiting {
			if !before.take(after, c) {
				s.Waiting = append(s.Waiting, lock{file: c.file, Mode: c.mode.String(), Op: "lock"})
			}
		}
	}
	longestFirst := func(a, b lock) int {
		return cmp.Or(cmp.Compare(b.Seconds, a.Seconds), cmp.Compare(a.Path, b.Path))
	}
	slices.SortStableFunc(s.Held, longestFirst)
	slices.SortStableFunc(s.Waiting, longestFirst)
	s.addOthers(infos, asked)
	return s
}

// A claim is as much of a lock as Snapshot tells.
type claim struct {
	file
	mode  flockctx.Mode
	waits bool
}

type claims map[claim]int

// take takes one of c out of both, and reports whether one of them had it.
func (before claims) take(after claims, c claim) bool {
	had := before[c] > 0 || after[c] > 0
	before[c]--
	after[c]--
	return had
}

func fileOf(path string, m flockctx.Mechanism, start, length int64) file {
	return file{path, m.String(), start, length}
}

// entries returns what is recorded now.
func (r *recorder) entries() (es []entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.held {
		es = append(es, *e)
	}
	for e := range r.waiting {
		es = append(es, *e)
	}
	return es
}

func (e *entry) file() file {
	return fileOf(e.event.Path, e.event.Mechanism, e.event.Start, e.event.Length)
}

// claim returns what Snapshot says of it, where a handle that waits to be converted has
// the mode in which it is locked.
func (e *entry) claim() claim {
	m := e.event.Mode
	if e.waits && e.event.Op == "convert" {
		m = flockctx.Exclusive + flockctx.Shared - m
	}
	return claim{e.file(), m, e.waits}
}

func (e *entry) lock(now time.Time) lock {
	since := e.since
	l := lock{
		file: e.file(), Mode: e.event.Mode.String(), Since: &since, Seconds: now.Sub(since).Seconds(),
		Goroutine: e.goroutine, pcs: e.stack,
	}
	if e.waits {
		l.Op = e.event.Op
	}
	if f := e.site; f.Function != "" {
		l.Code = fmt.Sprintf("%s %s:%d", filepath.Base(f.Function), filepath.Base(f.File), f.Line)
	}
	return l
}

// trace returns the stack from that function on.
func trace(pcs []uintptr) (lines []string) {
	frames := runtime.CallersFrames(pcs)
	for more := len(pcs) > 0; more; {
		var f runtime.Frame
		if f, more = frames.Next(); len(lines) > 0 || !inside(f.Function) {
			lines = append(lines, fmt.Sprintf("%s %s:%d", f.Function, f.File, f.Line))
		}
	}
	return lines
}

// addOthers adds what the system, which was asked, knows of the files in infos.
func (s *state) addOthers(infos []flockctx.HandleInfo, asked <-chan struct{}) {
	paths := map[uint64][]flockctx.HandleInfo{} // by inode
	for _, h := range infos {
		paths[h.Inode] = append(paths[h.Inode], h)
	}
	holders, asOf, err := system.end(asked, patience(len(infos)))
	if s.AsOf = asOf; err != nil {
		s.Error = err.Error()
	}
	for _, h := range holders {
		if h.PID == s.PID {
			continue
		}
		// On btrfs and overlayfs the kernel's table has other devices than stat(2).
		i := slices.IndexFunc(paths[h.Inode], func(i flockctx.HandleInfo) bool { return i.Device == h.Device || i.Path == h.Path })
		if i < 0 {
			continue
		}
		s.Others = append(s.Others, peer{fileOf(paths[h.Inode][i].Path, h.Mechanism, h.Start, h.Length), h.PID, h.Command, h.Mode.String(), h.Waiting})
	}
}

// A survey asks the system who holds locks. With thousands of open files that takes a
// second: so one at a time does it, nobody waits for it longer than it has patience, and
// who comes too early gets the last answer.
type survey struct {
	mu      sync.Mutex // guards the rest
	running chan struct{}
	asOf    time.Time // when it was asked what follows
	holders []flockctx.Holder
	err     error
}

// patience returns how long to wait for the system where this process has so many
// handles.
func patience(handles int) time.Duration {
	if handles < 1000 {
		return 2 * time.Second
	}
	return 50 * time.Millisecond
}

var system survey

// begin asks the system, unless it is being asked, and returns a channel that is closed
// when it has answered.
func (v *survey) begin() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.running == nil {
		v.running = make(chan struct{})
		go v.run(v.running)
	}
	return v.running
}

// end waits for that and returns the last answer, and when it was asked for.
func (v *survey) end(asked <-chan struct{}, patience time.Duration) ([]flockctx.Holder, time.Time, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-asked:
	case <-timer.C:
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.holders, v.asOf, v.err
}

func (v *survey) run(done chan struct{}) {
	asOf := time.Now()
	holders, err := flockctx.AllHolders()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.holders, v.asOf, v.err, v.running = holders, asOf, err, nil
	close(done)
}
