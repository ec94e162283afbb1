package lockedfile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flockctx/flockctx/lockedfile"
)

var (
	updatesFlag = flag.Int("updates", 400, "how many Updates TestCrash waits for; `make stress` has it wait for 10,000")
	seedFlag    = flag.Uint64("seed", 1, "seed of the times at which TestCrash kills")
)

const crashWorkers = 8

// A ledger is the content of TestCrash's file: what each worker has added, and a
// checksum over that and much padding, so that a part of it cannot be taken for one.
type ledger [crashWorkers]uint64

const ledgerSize = 40 << 10

func (l *ledger) encode() []byte {
	b := make([]byte, 0, ledgerSize)
	for _, n := range l {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	for i := byte(0); len(b) < ledgerSize-4; i++ {
		b = append(b, i^byte(l.total()))
	}
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func decodeLedger(b []byte) (l ledger, err error) {
	if len(b) != ledgerSize || crc32.ChecksumIEEE(b[:ledgerSize-4]) != binary.BigEndian.Uint32(b[ledgerSize-4:]) {
		return l, fmt.Errorf("a part: %d bytes", len(b))
	}
	for i := range l {
		l[i] = binary.BigEndian.Uint64(b[8*i:])
	}
	return l, nil
}

func (l *ledger) total() (n uint64) {
	for _, m := range l {
		n += m
	}
	return n
}

// The worker notes before each Update that it begins, and after it that it returned,
// in a file that survives it.
var _ = registerCommand("worker", func(args []string) error {
	path, log := args[0], args[1]
	me, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	fmt.Print(".")
	for {
		if _, err := f.WriteString("b"); err != nil {
			return err
		}
		err := lockedfile.Update(context.Background(), path, 0o600, func(old []byte) ([]byte, error) {
			var l ledger
			if old != nil {
				var err error
				if l, err = decodeLedger(old); err != nil {
					return nil, err
				}
			}
			l[me]++
			return l.encode(), nil
		})
		if err != nil {
			return err
		}
		if _, err := f.WriteString("r"); err != nil {
			return err
		}
	}
})

// 8 processes update a file, from the first on, which creates it, and are killed at
// random times. Readers without a lock never see a part, nor anything older than what
// they saw before. No Update that returned is lost, and in the end nothing is left but
// the file.
func TestCrash(t *testing.T) {
	dir, logs := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "file")
	log := func(i int) string { return filepath.Join(logs, fmt.Sprint(i)) }
	updates := uint64(*updatesFlag)
	if testing.Short() {
		updates = min(updates, 100)
	}
	life := 60 * time.Millisecond  // of a worker, at most; longer while it does not get on
	if runtime.GOOS == "windows" { // under wine all is slow
		updates, life = min(updates, 30), time.Second
	}
	var stop atomic.Bool
	var kills, reads atomic.Int64
	var seen [crashWorkers]atomic.Uint64 // Updates of each
	var group, readers sync.WaitGroup
	for i := range crashWorkers {
		random := rand.New(rand.NewPCG(*seedFlag, uint64(i)))
		group.Go(func() {
			most := life
			for !stop.Load() {
				before := seen[i].Load()
				var stderr bytes.Buffer
				cmd := newCommand(t, "worker", path, log(i), fmt.Sprint(i))
				cmd.Stderr = &stderr
				stdout, err := cmd.StdoutPipe()
				if err == nil {
					err = cmd.Start()
				}
				if err != nil {
					t.Error(err)
					return
				}
				stdout.Read(make([]byte, 1)) // it begins
				time.Sleep(time.Duration(random.Int64N(int64(most))))
				cmd.Process.Kill()
				err = cmd.Wait()
				if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Exited() && stderr.Len() > 0 {
					t.Errorf("worker %d was not killed: %v, %s", i, err, stderr.String())
					return
				}
				kills.Add(1)
				if seen[i].Load() > before {
					most = life
				} else {
					most = min(2*most, time.Second)
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			var last ledger
			for !stop.Load() {
				b, err := os.ReadFile(path)
				if errors.Is(err, fs.ErrNotExist) && last.total() == 0 {
					continue
				}
				if runtime.GOOS == "windows" && err != nil {
					continue // a sharing violation, in the middle of the rename
				}
				if err == nil {
					var l ledger
					if l, err = decodeLedger(b); err == nil {
						for i := range l {
							if l[i] < last[i] {
								err = fmt.Errorf("older than what was read before: %v after %v", l, last)
							}
						}
						last = l
					}
				}
				if err != nil {
					t.Errorf("reader: %v", err)
					return
				}
				for i, n := range last {
					seen[i].Store(n)
				}
				if reads.Add(1); last.total() >= updates {
					stop.Store(true)
				}
				time.Sleep(100 * time.Microsecond)
			}
		})
	}
	done := make(chan struct{})
	go func() { readers.Wait(); stop.Store(true); group.Wait(); close(done) }()
	limit := time.NewTimer(patience + time.Duration(updates)*100*time.Millisecond)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		stop.Store(true)
		<-done
		t.Fatal("the workers do not get on")
	}
	if t.Failed() {
		return
	}
	b, err := lockedfile.Read(t.Context(), path)
	must(t, err)
	l, err := decodeLedger(b)
	must(t, err)
	var begun, returned uint64
	for i, n := range l {
		notes, err := os.ReadFile(log(i))
		must(t, err)
		b, r := uint64(bytes.Count(notes, []byte("b"))), uint64(bytes.Count(notes, []byte("r")))
		if n < r || n > b {
			t.Errorf("worker %d: %d Updates returned, %d are there, %d began", i, r, n, b)
		}
		begun, returned = begun+b, returned+r
	}
	must(t, lockedfile.Write(t.Context(), path, b, 0o600))
	wantNames(t, dir, "file")
	t.Logf("%d Updates began, %d are there, %d had returned; %d kills, %d reads", begun, l.total(), returned, kills.Load(), reads.Load())
}
