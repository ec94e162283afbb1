// Quickstart shows what flockctx does, with several processes of itself that want
// one lock: it is held, waited for with a deadline, waited for until the waiter is
// cancelled, and comes free when its holder is killed.
//
//	go run ./examples/quickstart
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/flockctx/flockctx"
)

func main() {
	log.SetFlags(0)
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == "wait":
		err = wait(os.Args[2], os.Args[3])
	case len(os.Args) == 1:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = direct(ctx, os.Stdout)
	default:
		log.Print("usage: quickstart, without arguments")
		os.Exit(2)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// wait is each of the processes: it waits for the lock for as long as it may.
func wait(path, limit string) error {
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	go func() {
		// The director cancels a process by closing its standard input.
		io.Copy(io.Discard, os.Stdin)
		leave()
	}()
	if limit != "forever" {
		d, err := time.ParseDuration(limit)
		if err != nil {
			return err
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}

	fmt.Println("wants the lock")
	l, err := flockctx.Lock(ctx, path, nil)
	var busy *flockctx.BusyError
	switch {
	case errors.As(err, &busy) && busy.Timeout():
		fmt.Printf("gives up at its deadline, after %v\n", busy.Waited.Round(time.Millisecond))
		return nil
	case errors.As(err, &busy):
		fmt.Printf("stops waiting, because it was cancelled, after %v\n", busy.Waited.Round(time.Millisecond))
		return nil
	case err != nil:
		return err
	}
	defer l.Close()

	fmt.Println("has the lock")
	<-ctx.Done()
	fmt.Println("releases the lock")
	return nil
}

// direct starts the processes and tells on w what they do. They end with ctx.
func direct(ctx context.Context, w io.Writer) error {
	dir, err := os.MkdirTemp("", "flockctx-quickstart-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &stage{path: filepath.Join(dir, "file.lock"), w: w, begin: time.Now()}
	defer s.clear()

	s.tell("this program", "starts processes that want the lock of one file")
	anna, err := s.enter(ctx, "Anna", "forever")
	if err != nil {
		return err
	}
	if err := anna.does("wants the lock", "has the lock"); err != nil {
		return err
	}

	ben, err := s.enter(ctx, "Ben", "300ms")
	if err != nil {
		return err
	}
	if err := ben.does("wants the lock", "gives up"); err != nil {
		return err
	}

	cleo, err := s.enter(ctx, "Cleo", "forever")
	if err != nil {
		return err
	}
	if err := cleo.does("wants the lock"); err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond) // so that the reader sees her wait
	s.tell("this program", "cancels Cleo")
	cleo.stdin.Close()
	if err := cleo.does("stops waiting"); err != nil {
		return err
	}

	dora, err := s.enter(ctx, "Dora", "forever")
	if err != nil {
		return err
	}
	if err := dora.does("wants the lock"); err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond)
	s.tell("this program", "kills Anna, who has the lock")
	if err := anna.cmd.Process.Kill(); err != nil {
		return err
	}
	if err := dora.does("has the lock"); err != nil {
		return err
	}
	dora.stdin.Close()
	return dora.does("releases the lock")
}

// A stage has the processes.
type stage struct {
	path   string
	w      io.Writer
	begin  time.Time
	actors []*actor
}

type actor struct {
	*stage
	name  string
	cmd   *exec.Cmd
	stdin io.Closer
	lines *bufio.Scanner
}

func (s *stage) tell(who, what string) {
	fmt.Fprintf(s.w, "%5d ms  %s %s\n", time.Since(s.begin).Milliseconds(), who, what)
}

// enter starts a process.
func (s *stage) enter(ctx context.Context, name, limit string) (*actor, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, exe, "wait", s.path, limit)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	a := &actor{s, name, cmd, stdin, bufio.NewScanner(stdout)}
	s.actors = append(s.actors, a)
	return a, nil
}

// does waits until the process has done each of what, in order.
func (a *actor) does(what ...string) error {
	for _, want := range what {
		if !a.lines.Scan() {
			return fmt.Errorf("%s ended where it %q was expected", a.name, want)
		}
		line := a.lines.Text()
		a.tell(a.name, line)
		if len(line) < len(want) || line[:len(want)] != want {
			return fmt.Errorf("%s %q where %q was expected", a.name, line, want)
		}
	}
	return nil
}

func (s *stage) clear() {
	for _, a := range s.actors {
		a.cmd.Process.Kill()
		a.cmd.Wait()
	}
}
