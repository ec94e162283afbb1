package flockctx_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

func fair() *flockctx.Options { return &flockctx.Options{Fair: true} }

// inLine returns how many processes and handles stand in line for path.
func inLine(t testing.TB, path string) (n int) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	for start := int64(1) << 61; ; n++ {
		lk := unix.Flock_t{Type: unix.F_RDLCK, Start: start}
		must(t, unix.FcntlFlock(f.Fd(), 36, &lk)) // F_OFD_GETLK
		if lk.Type == unix.F_UNLCK {
			return n
		}
		start = max(start, lk.Start) + 1
	}
}

// "queue PATH NAME MODE" locks the file at path in turn and appends its name to that.
var _ = registerCommand("queue", func(args []string) error {
	o := fair()
	if args[2] == "shared" {
		o.Mode = flockctx.Shared
	}
	return flockctx.Do(context.Background(), args[0], o, func(l *flockctx.Flock) error {
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(args[1] + " ")
		return err
	})
})

// startQueue starts that command and waits until it stands in line, behind so many.
func startQueue(t *testing.T, path, name, mode string, before int) *exec.Cmd {
	t.Helper()
	cmd := newCommand(t, "queue", []string{path, name, mode})
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	eventually(t, name+" stands in line", func() bool { return inLine(t, path) == before+1 })
	return cmd
}

// Processes get the lock in the order in which they came, readers among them, also where
// one in line is killed, stopped for a while, or gives up.
func TestFairIsFirstComeFirstServed(t *testing.T) {
	path := tempPath(t)
	l := mustLock(t, path, fair())
	var cmds []*exec.Cmd
	want := ""
	for i := range 8 {
		mode := "exclusive"
		if i%3 == 1 {
			mode = "shared"
		}
		cmds = append(cmds, startQueue(t, path, fmt.Sprint(i), mode, i))
		if i != 2 {
			want += fmt.Sprint(i, " ")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := async(func() error { _, err := flockctx.Lock(ctx, path, fair()); return err })
	eventually(t, "a goroutine waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
	cancel()
	wantErr(t, soon(t, gaveUp, "Lock after cancel"), context.Canceled)
	must(t, cmds[2].Process.Kill())
	cmds[2].Wait()
	eventually(t, "the killed one is out of line", func() bool { return inLine(t, path) == 7 })
	stopProcess(t, cmds[4].Process)
	must(t, l.Unlock())
	eventually(t, "those before the stopped one have had their turn", func() bool {
		b, err := os.ReadFile(path)
		must(t, err)
		return strings.HasPrefix(string(b), "0 1 3 ")
	})
	must(t, cmds[4].Process.Signal(unix.SIGCONT))
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil && i != 2 {
			t.Errorf("%d: %v", i, err)
		}
	}
	b, err := os.ReadFile(path)
	must(t, err)
	if string(b) != want {
		t.Errorf("their order was %q, want %q", b, want)
	}
	if n := inLine(t, path); n != 0 {
		t.Errorf("%d are left in line", n)
	}
}

// stopProcess returns when all threads of p have stopped: until then one may still be granted
// a lock.
func stopProcess(t *testing.T, p *os.Process) {
	t.Helper()
	must(t, p.Signal(unix.SIGSTOP))
	eventually(t, "all threads have stopped", func() bool {
		stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid))
		for _, stat := range stats {
			b, err := os.ReadFile(stat)
			if _, after, _ := strings.Cut(string(b), ") "); err != nil || !strings.HasPrefix(after, "T") {
				return false
			}
		}
		return len(stats) > 0
	})
}

// Who gives up in front of another process leaves no ticket, in every way to wait, and
// TryLock does not overtake those in line.
func TestFairLeavesNothing(t *testing.T) {
	for _, wait := range waits {
		path := tempPath(t)
		holder := startHolder(t, path, flockctx.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		o := fair()
		o.Wait = wait
		waiting := async(func() error { _, err := flockctx.Lock(ctx, path, o); return err })
		eventually(t, "it stands in line", func() bool { return inLine(t, path) == 1 })
		second := startQueue(t, path, "second", "exclusive", 1)
		cancel()
		wantErr(t, soon(t, waiting, "Lock after cancel"), context.Canceled)
		if n := inLine(t, path); n != 1 {
			t.Errorf("%d in line, want only the other process", n)
		}
		stopProcess(t, second.Process)
		holder.must("unlock")
		_, err := flockctx.TryLock(path, fair())
		wantErr(t, err, flockctx.ErrLocked)
		must(t, second.Process.Signal(unix.SIGCONT))
		must(t, second.Wait())
		l := mustLock(t, path, o)
		must(t, l.Close())
	}
}

func TestFairIsRefusedWhereItCannotHold(t *testing.T) {
	path := tempPath(t)
	must(t, os.WriteFile(path, nil, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	for name, lock := range map[string]func() (*flockctx.Flock, error){
		"OFD": func() (*flockctx.Flock, error) {
			return flockctx.TryLock(path, &flockctx.Options{Fair: true, Mechanism: flockctx.OFD})
		},
		"ReadOnly": func() (*flockctx.Flock, error) {
			return flockctx.TryLock(path, &flockctx.Options{Fair: true, ReadOnly: true})
		},
		"directory": func() (*flockctx.Flock, error) { return flockctx.TryLock(filepath.Dir(path), fair()) },
		"LockFile":  func() (*flockctx.Flock, error) { return flockctx.TryLockFile(f, fair()) },
	} {
		_, err := lock()
		if pathErr, ok := err.(*fs.PathError); !ok || !errors.Is(err, errors.ErrUnsupported) || pathErr.Path == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// BenchmarkFair has a process write beside readers of three others, with and without Fair.
func BenchmarkFair(b *testing.B) {
	for _, isFair := range []bool{false, true} {
		b.Run(fmt.Sprintf("fair=%v", isFair), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "file")
			for range 3 {
				cmd := newCommand(b, "read-on", []string{path, fmt.Sprint(isFair)})
				must(b, cmd.Start())
				b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
			}
			l := flockctx.New(path, &flockctx.Options{Fair: isFair})
			defer l.Close()
			time.Sleep(100 * time.Millisecond) // until they read
			var longest time.Duration
			for b.Loop() {
				began := time.Now()
				must(b, l.Lock(context.Background()))
				longest = max(longest, time.Since(began))
				must(b, l.Unlock())
			}
			b.ReportMetric(float64(longest.Milliseconds()), "ms-longest")
		})
	}
}

var _ = registerCommand("read-on", func(args []string) error {
	l := flockctx.New(args[0], &flockctx.Options{Mode: flockctx.Shared, Fair: args[1] == "true"})
	for {
		if err := l.Lock(context.Background()); err != nil {
			return err
		}
		time.Sleep(500 * time.Microsecond)
		if err := l.Unlock(); err != nil {
			return err
		}
	}
})

// One goroutine holds the lock shared, another process stands in line to write, and a second
// goroutine behind that to read. The first one's Convert must not wait for the second one:
// that waits for the other process, and that for the first.
func TestConvertBesideAReaderInLine(t *testing.T) {
	for _, early := range []bool{false, true} {
		for _, wait := range waits {
			path := tempPath(t)
			o := &flockctx.Options{Fair: true, Mode: flockctx.Shared, Wait: wait}
			l := mustLock(t, path, o)
			writer := startQueue(t, path, "w", "exclusive", 0)
			var reader <-chan error
			goOn := make(chan struct{})
			ro := *o
			waiting := make(chan struct{}, 2)
			ro.Tracer = &flockctx.Tracer{Waiting: func(context.Context, flockctx.Event) context.Context {
				waiting <- struct{}{}
				<-goOn
				return nil
			}}
			reader = async(func() error {
				return flockctx.Do(t.Context(), path, &ro, func(*flockctx.Flock) error { return nil })
			})
			<-waiting
			if !early {
				close(goOn)
				eventually(t, "the reader stands in line", func() bool { return inLine(t, path) == 2 })
			}
			converted := async(func() error { return l.Convert(t.Context(), flockctx.Exclusive) })
			if early {
				eventually(t, "Convert waits for the reader", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
				close(goOn)
			}
			err := soon(t, converted, "Convert")
			if err != nil && !errors.Is(err, flockctx.ErrNotLocked) {
				t.Error(err)
			}
			must(t, l.Close())
			must(t, soon(t, reader, "Lock of the reader"))
			must(t, writer.Wait())
		}
	}
}
