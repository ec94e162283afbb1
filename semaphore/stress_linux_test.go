package semaphore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/semaphore"
)

const (
	stressSlots      = 4
	stressGoroutines = 4
	stressProcesses  = 16
)

// A board is in a file that all processes of a stress test have mapped.
type board struct {
	holders  [stressSlots]atomic.Int32 // which process has the slot, or 0
	acquired atomic.Int64
	wrong    atomic.Int64
	failure  [1024]byte
	killed   [100_000]atomic.Bool // the process of this number is being killed, or was
}

func mapBoard(name string) *board {
	return (*board)(unsafe.Pointer(&mapFile(nil, name)[0]))
}

// TestStress has 16 processes of 4 goroutines each use 4 slots, while they are killed,
// stopped, and their contexts canceled. Each that has a slot says so on the board, and
// finds there whether another one has it, that was not killed. SEMAPHORE_STRESS=10m goes
// on for as long.
func TestStress(t *testing.T) {
	length := 5 * time.Second
	if testing.Short() {
		length = 2 * time.Second
	}
	if s := os.Getenv("SEMAPHORE_STRESS"); s != "" {
		var err error
		length, err = time.ParseDuration(s)
		must(t, err)
	}
	path := tempPath(t)
	shared := filepath.Join(t.TempDir(), "board")
	must(t, os.WriteFile(shared, make([]byte, unsafe.Sizeof(board{})), 0o600))
	b := mapBoard(shared)
	var number atomic.Int32
	kills, stops := 0, 0
	startWorker := func() *worker {
		id := int(number.Add(1))
		return &worker{id, start(t, newCommand(t, "stress", []string{path, shared, strconv.Itoa(id)}))}
	}
	var workers []*worker
	for range stressProcesses {
		workers = append(workers, startWorker())
	}
	for end := time.Now().Add(length); time.Now().Before(end) && b.wrong.Load() == 0; {
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
		i := rand.IntN(len(workers))
		w := workers[i]
		if rand.IntN(2) == 0 || int(number.Load()) >= len(b.killed)-1 {
			stops++
			w.cmd.Process.Signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			w.cmd.Process.Signal(syscall.SIGCONT)
			continue
		}
		kills++
		b.killed[w.id].Store(true)
		w.kill()
		workers[i] = startWorker()
	}
	for _, w := range workers {
		w.stdin.Close()
	}
	for _, w := range workers {
		w.end()
		if !w.cmd.ProcessState.Success() {
			t.Errorf("process %d: %v", w.id, w.cmd.ProcessState)
		}
	}
	t.Logf("%d acquired, %d killed, %d stopped", b.acquired.Load(), kills, stops)
	if b.wrong.Load() > 0 {
		t.Error(string(bytes.TrimRight(b.failure[:], "\x00")))
	}
	if b.acquired.Load() < 100 {
		t.Errorf("only %d were acquired", b.acquired.Load())
	}
	wantFree(t, path, stressSlots)
	// Nobody has a turn.
	for range stressSlots {
		mustAcquire(t, path, stressSlots)
	}
}

type worker struct {
	id int
	*agent
}

var _ = register("stress", func(args []string) error {
	path, b := args[0], mapBoard(args[1])
	id, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	var wg sync.WaitGroup
	for range stressGoroutines {
		wg.Go(func() {
			for ctx.Err() == nil {
				if text := stressOnce(ctx, path, b, int32(id)); text != "" && b.wrong.Add(1) == 1 {
					copy(b.failure[:], text)
				}
			}
		})
	}
	wg.Wait()
	return nil
})

// stressOnce acquires a slot and gives it back. It returns what was wrong.
func stressOnce(ctx context.Context, path string, b *board, id int32) string {
	var p *semaphore.Permit
	var err error
	switch rand.IntN(8) {
	case 0:
		p, err = semaphore.TryAcquire(path, stressSlots, nil)
	case 1, 2:
		short, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(3000))*time.Microsecond)
		p, err = semaphore.Acquire(short, path, stressSlots, nil)
		cancel()
	default:
		p, err = semaphore.Acquire(ctx, path, stressSlots, nil)
	}
	if err != nil {
		if _, busy := errors.AsType[*flockctx.BusyError](err); !busy {
			return err.Error()
		}
		if errors.Is(err, flockctx.ErrLocked) {
			time.Sleep(time.Millisecond)
		}
		return ""
	}
	defer p.Release()
	if p.Slot() < 0 || p.Slot() >= stressSlots {
		return fmt.Sprint("slot ", p.Slot())
	}
	holder := &b.holders[p.Slot()]
	if other := holder.Swap(id); other != 0 && !b.killed[other].Load() {
		return fmt.Sprintf("processes %d and %d have slot %d", other, id, p.Slot())
	}
	b.acquired.Add(1)
	if rand.IntN(4) == 0 {
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
	}
	if other := holder.Swap(0); other != id {
		return fmt.Sprintf("process %d has slot %d, and finds %d there", id, p.Slot(), other)
	}
	return ""
}
