package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/semaphore"
)

// entry is a lock in the output of --list --json.
type entry struct {
	PID      *int   `json:"pid"` // null: cannot be seen
	Command  string `json:"command"`
	Kind     string `json:"kind"` // flock, ofd, posix, lease
	Mode     string `json:"mode"` // exclusive, shared
	Waiting  bool   `json:"waiting"`
	WaitsFor *int   `json:"waits_for"` // pid of a holder
	Start    int64  `json:"start"`
	End      *int64 `json:"end"` // the last byte; null: to the end of the file
	Path     string `json:"path"`
	Device   string `json:"device"` // major:minor of the file system
	Inode    uint64 `json:"inode"`
	Locker   *int   `json:"locker"` // pid that took the lock, maybe gone
	Others   []int  `json:"others"` // further pids that have the same lock
}

func pid(n int) *int {
	if n == 0 {
		return nil
	}
	return &n
}

// list is --list: the locks on the files, or all.
func (c *command) list(o *options) int {
	var hs []flockctx.Holder
	code := exitOK
	if len(o.args) == 0 {
		var err error
		if hs, err = flockctx.AllHolders(); err != nil {
			c.say("cannot list locks: %v", reason(err))
			return exitSystem
		}
	}
	for _, path := range o.args {
		of, err := flockctx.Holders(path)
		if err != nil {
			c.say("%s: %v", path, reason(err))
			if code = exitNoInput; errors.Is(err, errors.ErrUnsupported) {
				return exitSystem // not a matter of this file
			}
			continue
		}
		hs = append(hs, of...)
	}
	var out bytes.Buffer
	if o.json {
		writeJSON(&out, hs)
	} else {
		writeTable(&out, hs)
	}
	if failed := c.print(out.String()); failed != exitOK {
		return failed
	}
	return code
}

func writeJSON(out *bytes.Buffer, hs []flockctx.Holder) {
	entries := make([]entry, 0, len(hs))
	for _, h := range hs {
		major, minor := device(h.Device)
		e := entry{
			PID: pid(h.PID), Command: h.Command, Kind: h.Mechanism.String(), Mode: h.Mode.String(),
			Waiting: h.Waiting, WaitsFor: pid(h.WaitsFor), Start: h.Start, Path: h.Path,
			Device: fmt.Sprintf("%d:%d", major, minor), Inode: h.Inode, Locker: pid(h.Locker), Others: h.Others,
		}
		if h.Length != 0 {
			end := h.Start + h.Length - 1
			e.End = &end
		}
		if e.Others == nil {
			e.Others = []int{}
		}
		entries = append(entries, e)
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	enc.Encode(struct {
		Locks []entry `json:"locks"`
	}{entries})
}

func writeTable(out *bytes.Buffer, hs []flockctx.Holder) {
	if len(hs) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "PID\tKIND\tMODE\tRANGE\tWAITS FOR\tPATH\tCOMMAND")
	for _, h := range hs {
		id, waits, mode := "?", "", h.Mode.String()
		if h.PID != 0 {
			id = strconv.Itoa(h.PID)
		}
		for _, p := range h.Others {
			id += "," + strconv.Itoa(p)
		}
		if h.Waiting {
			if waits = "?"; h.WaitsFor != 0 {
				waits = strconv.Itoa(h.WaitsFor)
			}
		}
		path, command := h.Path, h.Command
		if path == "" {
			path = unnamed(h)
		}
		if h.PID == 0 && !h.Waiting && h.Locker != 0 {
			command = fmt.Sprintf("(cannot be seen; locked by pid %d)", h.Locker)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", id, h.Mechanism, mode, extent(h), waits, printable(path), printable(command))
	}
	w.Flush()
}

// extent describes the range of a lock.
func extent(h flockctx.Holder) string {
	if slot, ok := semaphore.SlotOf(h); ok && slot < 0 {
		return "any slot"
	} else if ok {
		return fmt.Sprintf("slot %d", slot)
	}
	switch {
	case h.Start == 0 && h.Length == 0:
		return "all"
	case h.Length == 0:
		return fmt.Sprintf("%d-", h.Start)
	}
	return fmt.Sprintf("%d-%d", h.Start, h.Start+h.Length-1)
}

// unnamed describes a file of which only the device and the inode are known.
func unnamed(h flockctx.Holder) string {
	major, minor := device(h.Device)
	where := fmt.Sprintf("device %d:%d", major, minor)
	f, err := os.Open("/proc/self/mountinfo")
	if err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			// The fields are described in proc_pid_mountinfo(5).
			if fields := strings.Fields(s.Text()); len(fields) > 4 && fields[2] == fmt.Sprintf("%d:%d", major, minor) {
				where = fields[4]
				break
			}
		}
	}
	return fmt.Sprintf("(inode %d in %s)", h.Inode, where)
}
