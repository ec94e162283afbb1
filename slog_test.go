package flockctx_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

// A transcript is a writer that may be written to and read at once.
type transcript struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *transcript) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// logger writes lines of level and above, without the time.
func (l *transcript) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func TestSlogTracer(t *testing.T) {
	path := tempPath(t)
	var all, some transcript
	o := &flockctx.Options{Tracer: flockctx.JoinTracers(flockctx.SlogTracer(all.logger(slog.LevelDebug)), flockctx.SlogTracer(some.logger(slog.LevelInfo)))}
	l := mustLock(t, path, o)
	_, err := flockctx.TryLock(path, o)
	wantErr(t, err, flockctx.ErrLocked)
	must(t, l.Convert(t.Context(), flockctx.Shared))
	other := mustLock(t, path, &flockctx.Options{Mode: flockctx.Shared})
	wantErr(t, l.TryConvert(flockctx.Exclusive), flockctx.ErrLocked)
	must(t, other.Close())
	must(t, l.Unlock())
	want := []string{
		`level=DEBUG msg="locked PATH" waited=0s path=PATH mode=exclusive op=lock`,
		`level=INFO msg="not locked: PATH" waited=0s error="flockctx: lock PATH (exclusive): locked by another holder" path=PATH mode=exclusive op=lock`,
		`level=DEBUG msg="converted PATH" waited=0s path=PATH mode=shared op=convert`,
		`level=INFO msg="not converted: PATH" waited=0s error="flockctx: lock PATH (exclusive): locked by another holder" path=PATH mode=exclusive op=convert`,
		`level=DEBUG msg="released PATH" held=TIME path=PATH mode=shared op=unlock`,
	}
	compare := func(got *transcript, want []string) {
		t.Helper()
		quoted := strings.Trim(strconv.Quote(path), `"`) // a backslash is two in a text handler's value
		s := strings.ReplaceAll(strings.ReplaceAll(got.String(), quoted, "PATH"), path, "PATH")
		s = strings.ReplaceAll(s, `path="PATH"`, "path=PATH")
		s = regexp.MustCompile(`held=\S+`).ReplaceAllString(s, "held=TIME")
		if w := strings.Join(want, "\n") + "\n"; s != w {
			t.Errorf("got\n%swant\n%s", s, w)
		}
	}
	compare(&all, want)
	compare(&some, []string{want[1], want[3]})
}

// A process that holds a lock and looks like another program. It says "locked", and
// ends with its input.
var _ = registerCommand("rsync", func(args []string) error {
	l, err := flockctx.TryLock(args[len(args)-1], nil)
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("locked")
	io.Copy(io.Discard, os.Stdin)
	return nil
})

func TestSlogTracerNamesTheHolder(t *testing.T) {
	path := tempPath(t)
	if _, err := flockctx.Holders(path); err != nil && !os.IsNotExist(err) {
		t.Skip("SKIP: this system does not tell who holds a lock")
	}
	long := strings.Repeat("x", 200)
	cmd := newCommand(t, "rsync", []string{"-a", "two words\n\x1b[31m", long, path})
	cmd.Args[0] = "rsync"
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer cmd.Wait()
	defer stdin.Close()
	if s, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || s != "locked\n" {
		t.Fatal(s, err)
	}
	var out transcript
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := async(func() error {
		_, err := flockctx.Lock(ctx, path, &flockctx.Options{Tracer: flockctx.SlogTracer(out.logger(slog.LevelWarn))})
		return err
	})
	eventually(t, "it has waited for two seconds", func() bool { return strings.Count(out.String(), "\n") == 2 })
	cancel()
	wantErr(t, soon(t, done, "the end"), context.Canceled)
	lines := strings.Split(out.String(), "\n")
	for i, line := range lines[:2] {
		// 1s, or more on a busy machine.
		want := regexp.MustCompile(fmt.Sprintf(`^level=WARN msg="still waiting for %s after [\d.]+s: held by pid %d \(rsync -a two words .*x…\)" waited=(\S+) path=%s mode=exclusive op=lock$`,
			regexp.QuoteMeta(path), cmd.Process.Pid, regexp.QuoteMeta(path)))
		m := want.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("line %s\nwant %v", line, want)
		}
		if d, err := time.ParseDuration(m[1]); err != nil || d < time.Duration(i+1)*time.Second {
			t.Errorf("waited %v, %v", d, err)
		}
	}
}

// Who holds another range, or shares an open file that nobody waits for, is not named.
func TestSlogTracerNamesWhoIsInTheWay(t *testing.T) {
	path := tempPath(t)
	if len(mechanisms()) < 2 {
		t.Skip("no byte ranges")
	}
	far := &flockctx.Options{Mechanism: flockctx.OFD, Start: 100, Length: 10}
	other := startHolder(t, path, *far)
	if _, err := flockctx.Holders(path); err != nil {
		t.Skip("SKIP: this system does not tell who holds a lock")
	}
	near := flockctx.Options{Mechanism: flockctx.OFD, Start: 0, Length: 10}
	mustLock(t, path, &near)
	var out transcript
	near.Tracer = flockctx.SlogTracer(out.logger(slog.LevelWarn))
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err := flockctx.Lock(ctx, path, &near)
	wantErr(t, err, context.DeadlineExceeded)
	if s := out.String(); !strings.Contains(s, fmt.Sprintf("held by pid %d ", os.Getpid())) || strings.Contains(s, fmt.Sprint(other.cmd.Process.Pid)) {
		t.Errorf("%s, want only this process, %d, to be named", s, os.Getpid())
	}
}
