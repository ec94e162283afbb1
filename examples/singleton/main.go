// Singleton runs once at a time for each user: a second one says who runs already,
// and ends. A file left by a crash does not matter, since what counts is the lock and
// not the file.
//
//	go run ./examples/singleton    # in two terminals
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/flockctx/flockctx"
)

func main() {
	log.SetFlags(0)
	flag.Parse()
	if flag.NArg() > 0 {
		log.Printf("%s: there are no arguments but flags", flag.Arg(0))
		flag.Usage()
		os.Exit(2)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		log.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		log.Fatal(err)
	}
	l, err := only(filepath.Join(dir, "flockctx-singleton.pid"))
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	fmt.Printf("pid %d runs; end it with Ctrl-C or SIGTERM\n", os.Getpid())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	<-ctx.Done()
}

// only returns the lock that makes this process the only one, and writes its pid
// into the file, for people and for systems other than Linux. Where another process
// has the lock, the error names that.
func only(path string) (*flockctx.Flock, error) {
	l, err := flockctx.TryLock(path, nil)
	if errors.Is(err, flockctx.ErrLocked) {
		if who := holder(path); who != "" {
			return nil, fmt.Errorf("runs already, as pid %s: %w", who, err)
		}
		return nil, fmt.Errorf("runs already: %w", err)
	}
	if err != nil {
		return nil, err
	}
	f := l.File()
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if _, err := io.WriteString(f, fmt.Sprintln(os.Getpid())); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// holder returns the pid of the process that has the lock, or "" where that has just
// begun or ended. The file is the second choice: a holder that has just begun has yet
// to overwrite what one that crashed left there.
func holder(path string) string {
	holders, err := flockctx.Holders(path)
	if errors.Is(err, errors.ErrUnsupported) {
		pid, _ := os.ReadFile(path)
		return strings.TrimSpace(string(pid))
	}
	for _, h := range holders {
		if !h.Waiting && h.PID != 0 {
			return strconv.Itoa(h.PID)
		}
	}
	return ""
}
