//go:build linux

package verify

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	gofrs "github.com/gofrs/flock"
	"github.com/rogpeppe/go-internal/lockedfile"
)

// A foreign program locks files too.
type foreign struct {
	name string
	mech flockctx.Mechanism
	need func(t *testing.T)
	// command returns what locks path, and then says "locked" and waits for a
	// line ("hold"), fails where that would have to wait ("try"), or adds 1 to
	// the number in path+".counter" n times, under the lock ("count").
	command func(what, path string, shared bool, n int) *exec.Cmd
}

func flockCommand(extra ...string) func(what, path string, shared bool, n int) *exec.Cmd {
	return func(what, path string, shared bool, n int) *exec.Cmd {
		args := append([]string(nil), extra...)
		if shared {
			args = append(args, "-s")
		}
		switch what {
		case "hold":
			return exec.Command("flock", append(args, path, "sh", "-c", "echo locked; read x")...)
		case "try":
			return exec.Command("flock", append(args, "-n", path, "true")...)
		}
		script := fmt.Sprintf(`i=0; while [ $i -lt %d ]; do flock %s "$1" sh -c 'n=$(cat "$1.counter"); echo $((n+1)) >"$1.counter"' sh "$1" || exit; i=$((i+1)); done`,
			n, strings.Join(extra, " "))
		return exec.Command("sh", "-c", script, "sh", path)
	}
}

func python(function string) func(what, path string, shared bool, n int) *exec.Cmd {
	return func(what, path string, shared bool, n int) *exec.Cmd {
		op := "LOCK_EX"
		if shared {
			op = "LOCK_SH"
		}
		const script = `
import fcntl, sys
what, function, path, op, n = sys.argv[1], getattr(fcntl, sys.argv[2]), sys.argv[3], getattr(fcntl, sys.argv[4]), int(sys.argv[5])
f = open(path, "r+")
if what == "hold":
    function(f, op)
    print("locked", flush=True)
    sys.stdin.readline()
elif what == "try":
    function(f, op | fcntl.LOCK_NB)
else:
    for i in range(n):
        function(f, op)
        with open(path + ".counter") as c:
            v = int(c.read())
        with open(path + ".counter", "w") as c:
            c.write(str(v + 1))
        function(f, fcntl.LOCK_UN)
`
		return exec.Command("python3", "-c", script, what, function, path, op, strconv.Itoa(n))
	}
}

type libraryConfig struct {
	Library, What, Path string
	Shared              bool
	N                   int
}

func library(name string) func(what, path string, shared bool, n int) *exec.Cmd {
	return func(what, path string, shared bool, n int) *exec.Cmd {
		exe, _ := os.Executable()
		config, _ := json.Marshal(libraryConfig{name, what, path, shared, n})
		cmd := exec.Command(exe, string(config))
		cmd.Env = append(os.Environ(), helperVar+"=library")
		return cmd
	}
}

func init() {
	helpers["library"] = func(raw json.RawMessage) error {
		var c libraryConfig
		if err := json.Unmarshal(raw, &c); err != nil {
			return err
		}
		lock := func() (unlock func() error, err error) {
			if c.Library == "lockedfile" {
				if c.Shared {
					f, err := lockedfile.Open(c.Path)
					return f.Close, err
				}
				f, err := lockedfile.Edit(c.Path)
				return f.Close, err
			}
			f := gofrs.New(c.Path)
			switch {
			case c.What == "try":
				try := f.TryLock
				if c.Shared {
					try = f.TryRLock
				}
				if ok, err := try(); err != nil || !ok {
					return nil, errors.Join(err, errors.New("busy"))
				}
				return f.Unlock, nil
			case c.Shared:
				return f.Unlock, f.RLock()
			}
			return f.Unlock, f.Lock()
		}
		if c.What == "count" {
			for range c.N {
				unlock, err := lock()
				if err != nil {
					return err
				}
				if err := count(c.Path + ".counter"); err != nil {
					return err
				}
				if err := unlock(); err != nil {
					return err
				}
			}
			return nil
		}
		unlock, err := lock()
		if err != nil {
			return err
		}
		if c.What == "hold" {
			fmt.Println("locked")
			fmt.Scanln(new(string))
		}
		return unlock()
	}
}

// count adds 1 to the number in the file.
func count(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strconv.Itoa(n+1)), 0o600)
}

// holding starts a command that holds a lock and returns what makes it release it.
func holding(t *testing.T, cmd *exec.Cmd) (release func()) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		io.WriteString(in, "release\n")
		in.Close()
		cmd.Wait()
	})
	t.Cleanup(release)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "locked\n" {
		t.Fatalf("%v says %q: %v", cmd.Args[0], line, err)
	}
	return release
}

func TestInteroperation(t *testing.T) {
	for _, f := range []foreign{
		{"flock(1)", flockctx.BSD, func(t *testing.T) { needCommands(t, "flock") }, flockCommand()},
		{"flock(1) --fcntl", flockctx.OFD, func(t *testing.T) {
			needCommands(t, "flock")
			if help, _ := exec.Command("flock", "--help").CombinedOutput(); !strings.Contains(string(help), "--fcntl") {
				t.Skipf("SKIP: %s: this flock(1) has no --fcntl, which came with util-linux 2.41", t.Name())
			}
		}, flockCommand("--fcntl")},
		{"Python fcntl.flock", flockctx.BSD, func(t *testing.T) { needCommands(t, "python3") }, python("flock")},
		{"Python fcntl.lockf", flockctx.OFD, func(t *testing.T) { needCommands(t, "python3") }, python("lockf")},
		{"gofrs/flock", flockctx.BSD, nil, library("gofrs")},
		{"Go's lockedfile", flockctx.BSD, nil, library("lockedfile")},
	} {
		t.Run(f.name, func(t *testing.T) {
			if f.need != nil {
				f.need(t)
			}
			for _, w := range waits {
				t.Run(w.String(), func(t *testing.T) {
					testForeign(t, f, flockctx.Options{Mechanism: f.mech, Wait: w})
				})
			}
		})
	}
}

func testForeign(t *testing.T, f foreign, o flockctx.Options) {
	path := filepath.Join(t.TempDir(), "lock")
	for _, name := range []string{path, path + ".counter"} {
		if err := os.WriteFile(name, []byte("0"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mode := func(shared bool) flockctx.Options {
		o := o
		if shared {
			o.Mode = flockctx.Shared
		}
		return o
	}
	for _, theirs := range []bool{false, true} {
		for _, ours := range []bool{false, true} {
			want := "busy"
			if theirs && ours {
				want = "ok"
			}
			// They hold it.
			release := holding(t, f.command("hold", path, theirs, 0))
			mustTry(t, want, path, mode(ours))
			granted := make(chan error, 1)
			if want == "busy" {
				own := mode(ours)
				go func() {
					l, err := flockctx.Lock(within(t, 30*time.Second), path, &own)
					if err == nil {
						err = l.Close()
					}
					granted <- err
				}()
				if o.Wait == flockctx.WaitBlock {
					waitsInKernel(t, os.Getpid())
				}
				select {
				case err := <-granted:
					t.Fatalf("granted beside the holder: %v", err)
				default:
				}
				release()
				if err := <-granted; err != nil {
					t.Fatalf("not granted after the release: %v", err)
				}
			}
			release()
			// We hold it. (lockedfile has no way to try.)
			own := mode(ours)
			l, err := flockctx.Lock(t.Context(), path, &own)
			if err != nil {
				t.Fatal(err)
			}
			if f.name != "Go's lockedfile" {
				err := f.command("try", path, theirs, 0).Run()
				if (err == nil) != (want == "ok") {
					t.Errorf("beside our lock (shared %v) theirs (shared %v): %v", ours, theirs, err)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}

	// All count together.
	const theirs, own = 20, 100
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if out, err := f.command("count", path, false, theirs).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
		wg.Go(func() {
			l := flockctx.New(path, &o)
			defer l.Close()
			for range own {
				if err := l.Lock(within(t, time.Minute)); err != nil {
					t.Error(err)
					return
				}
				if err := count(path + ".counter"); err != nil {
					t.Error(err)
				}
				if err := l.Unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b, err := os.ReadFile(path + ".counter")
	if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(2*theirs+2*own) {
		t.Errorf("the counter is %q, want %d: updates were lost (%v)", b, 2*theirs+2*own, err)
	}
}

// SQLite locks byte ranges of its database with POSIX locks, which meet ours of
// OFD: at 1 GiB a pending byte, a reserved byte, and 510 shared ones.
func TestInteroperationWithSQLite(t *testing.T) {
	needCommands(t, "sqlite3")
	db := filepath.Join(t.TempDir(), "db")
	if out, err := exec.Command("sqlite3", db, "CREATE TABLE t (n); INSERT INTO t VALUES (0);").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const lockBytes = 1 << 30
	for _, w := range waits {
		all := flockctx.Options{Mechanism: flockctx.OFD, Wait: w, Start: lockBytes, Length: 512}
		// Ours keeps SQLite out.
		l, err := flockctx.Lock(t.Context(), db, &all)
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("sqlite3", db, "UPDATE t SET n = n + 1;").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "locked") {
			t.Errorf("SQLite wrote beside our lock: %v %s", err, out)
		}
		// A shared one on the shared bytes lets it read.
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		reading := flockctx.Options{Mechanism: flockctx.OFD, Wait: w, Mode: flockctx.Shared, Start: lockBytes + 2, Length: 510}
		if l, err = flockctx.Lock(t.Context(), db, &reading); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("sqlite3", db, "SELECT n FROM t;").CombinedOutput(); err != nil {
			t.Errorf("SQLite cannot read beside a reader: %v %s", err, out)
		}
		if out, err := exec.Command("sqlite3", db, "UPDATE t SET n = n + 1;").CombinedOutput(); err == nil || !strings.Contains(string(out), "locked") {
			t.Errorf("SQLite wrote beside a reader: %v %s", err, out)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}

		// SQLite keeps ours out.
		cmd := exec.Command("sqlite3", db)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); cmd.Wait() })
		io.WriteString(in, "BEGIN EXCLUSIVE;\nSELECT 'locked';\n")
		if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "locked\n" {
			t.Fatalf("sqlite3 says %q: %v", line, err)
		}
		mustTry(t, "busy", db, all)
		mustTry(t, "busy", db, reading)
		granted := make(chan error, 1)
		go func() {
			l, err := flockctx.Lock(within(t, 30*time.Second), db, &all)
			if err == nil {
				err = l.Close()
			}
			granted <- err
		}()
		if w == flockctx.WaitBlock {
			waitsInKernel(t, os.Getpid())
		}
		io.WriteString(in, "COMMIT;\n.quit\n")
		if err := <-granted; err != nil {
			t.Errorf("not granted after SQLite's commit: %v", err)
		}
		cmd.Wait()
	}
	if out, err := exec.Command("sqlite3", db, "PRAGMA integrity_check;").CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Errorf("the database: %v %s", err, out)
	}
}
