package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/flockctx/flockctx"
)

// watch says on standard error who holds the lock, while another goroutine waits
// for it, until done is called. On a terminal it does so after a second, on one
// line that it rewrites and finally takes away; elsewhere with --verbose only, and
// once for each holder.
func (l *lock) watch(paths []string) (done func()) {
	f, ok := l.stderr.(*os.File)
	columns := 0
	if ok {
		columns = width(f)
	}
	if l.quiet || columns == 0 && !l.verbose {
		return func() {}
	}
	w := &watcher{out: l.stderr, columns: columns, started: time.Now(), since: make(map[int]time.Time)}
	stop := make(chan struct{})
	go func() {
		if columns > 0 {
			select {
			case <-stop:
				return
			case <-time.After(time.Second):
			}
		}
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			w.show(names(paths), heldBy(paths, l.request(), w.seen))
			w.begun = true
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() {
		close(stop)
		w.stop()
	}
}

// A watcher writes the line.
type watcher struct {
	out     io.Writer
	columns int // of the terminal, 0 if it is none
	started time.Time
	since   map[int]time.Time // when a process was first seen with the lock
	begun   bool              // the holders were looked up before

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
	line := "waiting for " + printable(paths) + after(": held by ", holders)
	if w.columns == 0 {
		// What changes with each second is not worth a line.
		if key := untimed(line); key != w.shown {
			w.shown = key
			fmt.Fprintf(w.out, "flockctx: %s\n", key)
		}
		return
	}
	if holders == "" || strings.Contains(holders, "cannot be seen") {
		line += fmt.Sprintf(" (%d s)", int(time.Since(w.started).Seconds()))
	}
	w.shown = line
	fmt.Fprintf(w.out, "\r%s\x1b[K", cut(line, w.columns-1))
}

// stop takes the line away. It does not wait for anything.
func (w *watcher) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	if w.columns > 0 && w.shown != "" {
		fmt.Fprint(w.out, "\r\x1b[K")
	}
}

// timeMark separates a holder from since when it was seen. It is not printable.
const timeMark = "\x00"

func untimed(line string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(line, timeMark)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, line, _ = strings.Cut(rest, timeMark)
	}
}

// heldBy describes who holds the locks on paths that are in the way of one as r
// says, or is empty where nobody is seen. seen, which may be nil, tells for how long
// a process has had the lock.
func heldBy(paths []string, r *flockctx.Options, seen func(pid int) time.Duration) string {
	var names []string
	for _, p := range paths {
		hs, err := flockctx.Holders(p)
		if err != nil {
			continue
		}
		for _, h := range hs {
			same := h.Mechanism == r.Mechanism || r.Mechanism == flockctx.OFD && h.Mechanism == flockctx.POSIX
			if h.Waiting || !same || h.PID == os.Getpid() || h.Mode == flockctx.Shared && r.Mode == flockctx.Shared {
				continue
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

// names lists the files for a reader.
func names(paths []string) string {
	var s []string
	for _, p := range paths {
		if strings.HasPrefix(p, descriptors) {
			if target, err := os.Readlink(p); err == nil {
				p = target
			}
		}
		s = append(s, p)
	}
	return strings.Join(s, ", ")
}

// descriptors is where the files of an inherited descriptor have a path.
const descriptors = "/proc/self/fd/"

// printable replaces what would move the cursor, or worse.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// cut shortens the line to n characters. The command of a holder gives way, so that
// the time at the end stays in sight.
func cut(line string, n int) string {
	r := []rune(strings.ReplaceAll(line, timeMark, ""))
	if len(r) <= n || n < 10 {
		return string(r[:max(0, min(len(r), n))])
	}
	tail := 0
	if before, _, found := strings.Cut(line, timeMark); found && strings.Count(line, timeMark) == 2 {
		tail = len(r) - len([]rune(before)) + 1 // and the bracket
	}
	if tail >= n-1 {
		tail = 0
	}
	return string(r[:n-1-tail]) + "…" + string(r[len(r)-tail:])
}
