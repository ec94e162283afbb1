package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/semaphore"
)

// watch says on standard error who holds the lock, while another goroutine waits
// for it, until done is called. On a terminal it does so after a second, on one
// line that it rewrites and finally takes away; elsewhere with --verbose only, and
// once for each holder.
func (l *lock) watch(paths []string) (done func()) {
	w := &watcher{out: l.stderr, prefix: "waiting for ", started: time.Now(), since: make(map[int]time.Time)}
	if l.slots > 0 {
		w.prefix += "a slot of "
	}
	w.terminal, _ = l.stderr.(*os.File)
	if w.terminal != nil && width(w.terminal) == 0 {
		w.terminal = nil
	}
	if l.quiet || w.terminal == nil && !l.verbose {
		return func() {}
	}
	stop := make(chan struct{})
	go func() {
		pause := time.Duration(0)
		if w.terminal != nil {
			pause = time.Second
		}
		for {
			select {
			case <-stop:
				return
			case <-time.After(pause):
			}
			began := time.Now()
			w.show(names(paths), heldBy(paths, l.inTheWay, w.seen))
			w.begun = true
			// Whatever it costs to ask all processes, it is 2 % of a core at most.
			pause = max(time.Second, 50*time.Since(began))
		}
	}()
	return func() {
		close(stop)
		// A terminal that was stopped (Ctrl-S) takes nothing, for as long as its
		// user likes: the lock is not kept waiting for that.
		erased := make(chan struct{})
		go func() {
			w.stop()
			close(erased)
		}()
		select {
		case <-erased:
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// A watcher writes the line.
type watcher struct {
	out      io.Writer
	terminal *os.File // out, if it is a terminal
	prefix   string
	started  time.Time
	since    map[int]time.Time // when a process was first seen with the lock
	begun    bool              // the holders were looked up before

	mu      sync.Mutex // guards the rest, and is held while the line is written
	stopped bool
	shown   string
}

// seen returns for how long a process has been seen with the lock. The first ones
// count from the beginning.
func (w *watcher) seen(pid int) time.Duration {
	if w.since[pid].IsZero() {
		w.since[pid] = time.Now()
		if !w.begun {
			w.since[pid] = w.started
		}
	}
	return time.Since(w.since[pid])
}

func (w *watcher) show(paths, holders string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	paths, rest := printable(paths), after(": held by ", holders)
	if w.terminal == nil {
		// What changes with each second is not worth a line.
		if key := w.prefix + paths + untimed(rest); key != w.shown {
			w.shown = key
			fmt.Fprintf(w.out, "flockctx: %s\n", key)
		}
		return
	}
	if inBackground(w.terminal) {
		return
	}
	if holders == "" || strings.Contains(holders, "cannot be seen") {
		rest += fmt.Sprintf(" (%d s)", int(time.Since(w.started).Seconds()))
	}
	w.shown = fit(w.prefix, paths, rest, width(w.terminal)-1)
	fmt.Fprintf(w.out, "\r%s\x1b[K", w.shown)
}

// stop takes the line away.
func (w *watcher) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	if w.terminal != nil && w.shown != "" && !inBackground(w.terminal) {
		fmt.Fprint(w.out, "\r\x1b[K")
	}
}

// heldByNow is heldBy, unless that takes long: reading the command line of a process
// waits for its memory, which can take for ever.
func heldByNow(paths []string, inTheWay func(flockctx.Holder) bool) string {
	text := make(chan string, 1)
	go func() { text <- heldBy(paths, inTheWay, nil) }()
	select {
	case s := <-text:
		return s
	case <-time.After(time.Second):
		return ""
	}
}

// heldBy describes who holds the locks on paths that are in the way, or is empty where
// nobody is seen. seen, which may be nil, tells for how long
// a process has had the lock.
func heldBy(paths []string, inTheWay func(flockctx.Holder) bool, seen func(pid int) time.Duration) string {
	var names []string
	for _, p := range paths {
		hs, err := flockctx.Holders(p)
		if err != nil {
			continue
		}
		for _, h := range hs {
			if h.Waiting || !inTheWay(h) {
				continue
			}
			if h.PID == os.Getpid() {
				// Its own lock is not in its way, unless it shares an inherited
				// descriptor: then it is named after another of those.
				if len(h.Others) == 0 {
					continue
				}
				h.PID, h.Command = h.Others[0], ""
			}
			name := who(h)
			if seen != nil && h.PID != 0 {
				name += timeMark + fmt.Sprintf(" since %d s", int(seen(h.PID).Seconds())) + timeMark
			}
			names = append(names, name)
		}
	}
	const most = 3
	if n := len(names) - most; n > 0 {
		names = append(names[:most], fmt.Sprintf("%d more", n))
	}
	return strings.Join(names, ", ")
}

// inTheWay reports whether l has to wait for the lock of h.
func (l *lock) inTheWay(h flockctx.Holder) bool {
	if l.slots > 0 {
		slot, ok := semaphore.SlotOf(h)
		return ok && slot >= 0 && slot < l.slots
	}
	return inTheWay(h, l.request())
}

// inTheWay reports whether a lock as r says has to wait for that of h.
func inTheWay(h flockctx.Holder, r *flockctx.Options) bool {
	kin := h.Mechanism == r.Mechanism || r.Mechanism == flockctx.OFD && h.Mechanism == flockctx.POSIX
	return kin && (h.Mode == flockctx.Exclusive || r.Mode == flockctx.Exclusive) &&
		(h.Length == 0 || r.Start-h.Start < h.Length) && (r.Length == 0 || h.Start-r.Start < r.Length)
}

// who describes a holder.
func who(h flockctx.Holder) string {
	switch {
	case h.PID != 0 && h.Command != "":
		return fmt.Sprintf("pid %d (%s)", h.PID, printable(h.Command))
	case h.PID != 0:
		return fmt.Sprintf("pid %d", h.PID)
	case h.Locker != 0:
		return fmt.Sprintf("a process that cannot be seen, locked by pid %d", h.Locker)
	}
	return "a process that cannot be seen"
}

// names lists the files for a reader.
func names(paths []string) string {
	s := slices.Clone(paths)
	for i, p := range s {
		if strings.HasPrefix(p, descriptors) {
			if target, err := os.Readlink(p); err == nil {
				s[i] = target
			}
		}
	}
	return strings.Join(s, ", ")
}

// descriptors is where the files of an inherited descriptor have a path.
const descriptors = "/proc/self/fd/"
