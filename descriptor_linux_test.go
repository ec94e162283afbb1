//go:build linux

package flockctx_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// Who owns descriptors, and who inherits them.

// A trap: a descriptor without close-on-exec: a child keeps the lock after Unlock.
func TestDescriptorsAreCloseOnExec(t *testing.T) {
	dir := t.TempDir()
	mustLock(t, filepath.Join(dir, "bare"), nil)
	file := mustLock(t, filepath.Join(dir, "file"), nil)
	_ = file.File().Fd()
	mustLock(t, filepath.Join(dir, "flag"), &flockctx.Options{Flag: os.O_RDWR | os.O_CREATE})
	out, err := exec.Command("ls", "-l", "/proc/self/fd").Output()
	must(t, err)
	if strings.Contains(string(out), dir) {
		t.Errorf("a child inherited:\n%s", out)
	}
}

// Unlock and Close release the lock though a child inherited the descriptor.
func TestReleaseThoughAChildInheritedTheDescriptor(t *testing.T) {
	for _, mechanism := range mechanisms() {
		for _, how := range []string{"Unlock", "Close"} {
			t.Run(mechanism.String()+","+how, func(t *testing.T) {
				path := tempPath(t)
				o := flockctx.Options{Mechanism: mechanism}
				l := mustLock(t, path, &o)
				child := exec.Command("cat")
				stdin, err := child.StdinPipe()
				must(t, err)
				child.ExtraFiles = []*os.File{l.File()}
				must(t, child.Start())
				defer child.Wait()
				defer stdin.Close()
				wantLocked(t, path, o)
				if how == "Unlock" {
					must(t, l.Unlock())
				} else {
					must(t, l.Close())
				}
				wantFree(t, path, o)
				startHolder(t, path, o)
			})
		}
	}
}

// Between fork and exec a child of another goroutine shares every open file: a mere
// close would leave the file locked until that exec.
func TestNoSpuriousErrLockedWhileOthersFork(t *testing.T) {
	for _, mechanism := range mechanisms() {
		path := tempPath(t)
		o := flockctx.Options{Mechanism: mechanism}
		stop := make(chan struct{})
		var forks atomic.Int32
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						exec.Command("true").Run()
						forks.Add(1)
					}
				}
			})
		}
		for i := 0; forks.Load() < 200; i++ {
			l, err := flockctx.TryLock(path, &o)
			if err != nil {
				t.Errorf("%v, round %d: %v", mechanism, i, err)
				break
			}
			if i%2 == 0 {
				l.File()
			}
			must(t, l.Close())
		}
		close(stop)
		wg.Wait()
	}
}

// A trap: an os.File over a descriptor that is also closed by number closes, at its
// collection, whatever has the number by then. One owner per descriptor: here, many
// handles come and go, collected or closed, beside a file that must stay.
func TestOneOwnerPerDescriptor(t *testing.T) {
	run(t, "owners", []string{t.TempDir()})
}

var _ = registerCommand("owners", func(args []string) error {
	dir := args[0]
	for round := range 40 {
		for i := range 10 {
			l := flockctx.New(filepath.Join(dir, fmt.Sprint(i)), &flockctx.Options{Flag: os.O_RDWR | os.O_CREATE | os.O_TRUNC*(round%2)})
			if err := l.Lock(context.Background()); err != nil {
				return err
			}
			if i%2 == 0 {
				l.File()
			}
			if i%3 == 0 {
				if err := l.Unlock(); err != nil {
					return err
				}
				continue // and is forgotten
			}
			if err := l.Close(); err != nil {
				return err
			}
		}
		// The numbers of the closed ones are taken by files that have other locks.
		var held []*flockctx.Flock
		for i := range 10 {
			l, err := flockctx.TryLock(filepath.Join(dir, fmt.Sprint("held", i)), nil)
			if err != nil {
				return err
			}
			held = append(held, l)
		}
		collect()
		for _, l := range held {
			if _, err := l.File().Stat(); err != nil {
				return fmt.Errorf("round %d: a descriptor in use was closed: %v", round, err)
			}
			fd, err := unix.Open(l.Name(), unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
				return fmt.Errorf("round %d: a held lock is gone: %v", round, err)
			}
			unix.Close(fd)
			if err := l.Close(); err != nil {
				return err
			}
		}
	}
	return nil
})
