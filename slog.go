package flockctx

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// SlogTracer returns a tracer that writes to l, or with nil to slog.Default(): grants and
// releases at level Debug, failures at Info, and at Warn each wait that has lasted 1 s, 2 s,
// 4 s and so on, with who holds the lock, unless the wait ends before the system says that.
func SlogTracer(l *slog.Logger) *Tracer {
	if l == nil {
		l = slog.Default()
	}
	log := func(ctx context.Context, level slog.Level, e Event, text string, attrs ...slog.Attr) {
		attrs = append(attrs, slog.String("path", e.Path), slog.String("mode", e.Mode.String()), slog.String("op", e.Op))
		l.LogAttrs(ctx, level, text, attrs...)
	}
	return &Tracer{
		StillWaiting: func(ctx context.Context, e Event) {
			if !l.Enabled(ctx, slog.LevelWarn) {
				return
			}
			// The system can take its time to say who holds, and the wait must not.
			holders := make(chan string, 1)
			go func() { holders <- heldBy(e) }()
			held := ""
			select {
			case held = <-holders:
			case <-ctx.Done():
			}
			text := fmt.Sprintf("still waiting for %s after %v%s", e.Path, e.Waited.Round(time.Second/10), held)
			log(ctx, slog.LevelWarn, e, text, slog.Duration("waited", e.Waited))
		},
		Acquired: func(ctx context.Context, e Event) {
			if l.Enabled(ctx, slog.LevelDebug) {
				log(ctx, slog.LevelDebug, e, past(e.Op)+" "+e.Path, slog.Duration("waited", e.Waited))
			}
		},
		Failed: func(ctx context.Context, e Event) {
			if l.Enabled(ctx, slog.LevelInfo) {
				log(ctx, slog.LevelInfo, e, "not "+past(e.Op)+": "+e.Path, slog.Duration("waited", e.Waited), slog.Any("error", e.Err))
			}
		},
		Released: func(e Event) {
			ctx := context.Background()
			if !l.Enabled(ctx, slog.LevelDebug) {
				return
			}
			attrs := []slog.Attr{slog.Duration("held", e.Held)}
			if e.Err != nil {
				attrs = append(attrs, slog.Any("error", e.Err))
			}
			log(ctx, slog.LevelDebug, e, "released "+e.Path, attrs...)
		},
	}
}

func past(op string) string {
	if op == "convert" {
		return "converted"
	}
	return "locked"
}

// heldBy says who holds the lock of e, as the end of a sentence, or nothing where that
// cannot be told.
func heldBy(e Event) string {
	hs, err := e.Holders()
	if err != nil {
		return ""
	}
	var who []string
	for _, h := range hs {
		if h.inTheWayOf(e) {
			who = append(who, h.name())
		}
	}
	const most = 3
	switch {
	case len(who) == 0:
		return ""
	case len(who) > most:
		who = append(who[:most], fmt.Sprintf("%d more", len(who)-most))
	}
	return ": held by " + strings.Join(who, ", ")
}

// inTheWayOf reports whether h holds what e's handle waits for. OFD and POSIX locks
// exclude each other, both where their ranges overlap.
func (h *Holder) inTheWayOf(e Event) bool {
	kind := h.Mechanism
	if kind == POSIX {
		kind = OFD
	}
	want := queueKey{start: e.Start, length: e.Length}
	has := queueKey{start: h.Start, length: h.Length}
	return !h.Waiting && kind == e.Mechanism && want.overlaps(has)
}

// name names the holder: its process, and the beginning of its command line.
func (h *Holder) name() string {
	const longest = 80
	if h.PID == 0 {
		return "an unknown process"
	}
	command := strings.Join(strings.Fields(strings.ToValidUTF8(h.Command, "?")), " ")
	if r := []rune(command); len(r) > longest {
		command = string(r[:longest]) + "…"
	}
	if command == "" {
		return fmt.Sprintf("pid %d", h.PID)
	}
	return fmt.Sprintf("pid %d (%s)", h.PID, command)
}
