package locker

import (
	"context"
	"strings"
	"time"
)

// An Inspector is a [Locker] that can say who holds a name and who waits for it: all
// those of this module are.
type Inspector interface {
	// Holders returns those who hold the lock of name, and after them those who
	// wait for it, first come first. It is a snapshot that may be out of date when
	// it is returned; nobody is kept waiting by it. ctx governs the wait for the
	// server, as for Lock.
	Holders(ctx context.Context, name string) ([]Holder, error)
}

// A Holder is a lock that somebody holds or waits for. What the engine cannot know is
// zero.
type Holder struct {
	Mode    Mode
	Waiting bool

	// Since is when the lock was granted or, for one that waits, the wait began:
	// by the clock of the server or, on etcd, of the holder's host.
	Since time.Time

	Token Token  // of an exclusive grant
	Host  string // its machine's name
	PID   int    // its process there
	Note  string // see [WithNote]; for a file, the process's command line
}

// maxNote is the length in bytes of the longest note.
const maxNote = 256

type noteKey struct{}

// WithNote returns a context for Lock and TryLock that has them store note with the
// lock on the server, for whoever looks: with [Inspector] or the server's own tools. At
// most 256 bytes of it are kept, those that are text.
func WithNote(ctx context.Context, note string) context.Context {
	note = strings.ReplaceAll(note, "\x00", "")
	return context.WithValue(ctx, noteKey{}, strings.ToValidUTF8(note[:min(len(note), maxNote)], ""))
}

// Note returns the note that an engine is to store for a Lock with ctx, or "".
func Note(ctx context.Context) string {
	note, _ := ctx.Value(noteKey{}).(string)
	return note
}
