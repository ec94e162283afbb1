package flockdebug

import (
	"fmt"
	"time"

	"github.com/flockctx/flockctx"
)

// A state is what the page shows, and the JSON has.
type state struct {
	Program string    `json:"program"`
	PID     int       `json:"pid"`
	Time    time.Time `json:"time"`

	Recording *time.Time `json:"recording,omitempty"` // since when; else Start was not called

	Held    []lock `json:"held"`    // by this process, the longest first
	Waiting []lock `json:"waiting"` // calls of this process, the longest first
	Others  []peer `json:"others"`  // other processes, on the files of this one

	Cycles [][]string `json:"cycles"` // of those that wait for each other, and the files

	// AsOf is when the system was last asked for Others, and Error what it could not
	// tell.
	AsOf  time.Time `json:"others_as_of"`
	Error string    `json:"others_error,omitempty"`
}

// A lock is held or waited for in this process.
type lock struct {
	file
	Mode      string     `json:"mode"`
	Op        string     `json:"op,omitempty"` // that waits: "lock" or "convert"
	Since     *time.Time `json:"since,omitempty"`
	Seconds   float64    `json:"seconds"`
	Goroutine uint64     `json:"goroutine,omitempty"`  // that called
	Code      string     `json:"code,omitempty"`       // the caller of flockctx
	Stack     []string   `json:"stack,omitempty"`      // from there on
	InTheWay  int        `json:"in_the_way,omitempty"` // of so many calls and other processes

	pcs []uintptr
}

// A file says what is locked.
type file struct {
	Path      string `json:"path"`
	Mechanism string `json:"mechanism"`
	Start     int64  `json:"start,omitempty"`
	Length    int64  `json:"length,omitempty"` // 0 reaches to the end of the file
}

// A peer is a lock of another process.
type peer struct {
	file
	PID     int    `json:"pid,omitempty"` // 0: it cannot be told
	Command string `json:"command,omitempty"`
	Mode    string `json:"mode"`
	Waiting bool   `json:"waiting,omitempty"`
}

// overlaps reports whether locks of f and g can exclude each other.
func (f file) overlaps(g file) bool {
	kind := func(s string) string {
		if s == flockctx.POSIX.String() {
			return flockctx.OFD.String()
		}
		return s
	}
	return f.Path == g.Path && kind(f.Mechanism) == kind(g.Mechanism) &&
		(f.Length == 0 || g.Start < f.Start+f.Length) && (g.Length == 0 || f.Start < g.Start+g.Length)
}

// Range returns the byte range of an OFD lock, or nothing for the whole file.
func (f file) Range() string {
	switch {
	case f.Length != 0:
		return fmt.Sprintf(" bytes %d–%d", f.Start, f.Start+f.Length-1)
	case f.Start != 0:
		return fmt.Sprintf(" bytes %d–", f.Start)
	}
	return ""
}
