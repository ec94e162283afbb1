//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var handoverScenario = scenario{
	name:  "handover",
	title: "From one process to the next",
	about: "The time from just before one process's release to another's grant. 2, 4 and 16 processes; each holds the lock for 0.5 ms, asleep, " +
		"and after its release stays away until another one got the lock: so each release meets a waiter, and who polls cannot gain by taking the lock again. " +
		"flockctx semaphore takes the only slot of a semaphore instead of a lock. " +
		"This is what a queue of processes (builds, package managers, cron jobs) pays per step. " +
		"A wait in the kernel that cannot be cancelled has the least to do and sets the floor; polling loses by its interval.",
	run: (*bench).handover,
}

// A board is the memory that the processes of a hand-over share. bare.c has the same.
type board struct {
	grants   uint32 // counts; a futex
	stop     uint32
	last     uint32 // who got the lock last
	ready    uint32
	released int64 // when it was released
	start    uint32
}

func mapBoard(path string) (*board, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(4096); err != nil {
		return nil, err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*board)(unsafe.Pointer(&m[0])), nil
}

func futexWait(p *uint32, v uint32) {
	t := unix.NsecToTimespec(20e6)
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(p)), 0, uintptr(v), uintptr(unsafe.Pointer(&t)), 0, 0)
}

func futexWake(p *uint32) {
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(p)), 1, 1<<30, 0, 0, 0)
}

func handoverJob(j *job) (any, error) {
	b, err := mapBoard(j.Board)
	if err != nil {
		return nil, err
	}
	h, err := find(j.Cand).open(j.Path, false)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	me := uint32(j.Me)
	samples := make([]int64, 0, 1<<16)
	hold := unix.NsecToTimespec(int64(j.Hold))
	atomic.AddUint32(&b.ready, 1)
	for atomic.LoadUint32(&b.start) == 0 {
		futexWait(&b.start, 0)
	}
	for {
		if err := h.Lock(ctx); err != nil {
			return nil, err
		}
		t := now()
		if atomic.LoadUint32(&b.stop) != 0 {
			return samples, h.Unlock()
		}
		if r := atomic.LoadInt64(&b.released); r != 0 && atomic.LoadUint32(&b.last) != me {
			samples = append(samples, t-r)
		}
		atomic.StoreUint32(&b.last, me)
		g := atomic.AddUint32(&b.grants, 1)
		futexWake(&b.grants)
		unix.Nanosleep(&hold, nil)
		atomic.StoreInt64(&b.released, now())
		if err := h.Unlock(); err != nil {
			return nil, err
		}
		for atomic.LoadUint32(&b.grants) == g && atomic.LoadUint32(&b.stop) == 0 {
			futexWait(&b.grants, g)
		}
	}
}

func (b *bench) handover() error {
	// A round has enough hand-overs for p99, unless a poller takes too long for them.
	grants, length := pick(b, 1250, 1250, 20), 850*time.Millisecond
	cands := b.wants(oursKept, ours, oursSlot, gofrs1, gofrs10, locked, fmutex, fsl, bare, bareStat, bareC)
	if b.quick && b.only == nil {
		cands = b.wants(oursKept, ours, oursSlot, bare)
	}
	sizes := pick(b, []int{2, 4, 16}, []int{2, 4, 16}, []int{2})
	for _, n := range sizes {
		kase := fmt.Sprintf("%d processes", n)
		err := b.rounds(pick(b, 5, 2, 1), cands, func(c *candidate) error {
			samples, err := b.handoverOnce(c, n, grants, length)
			if err != nil {
				return err
			}
			b.addTimes(kase, c.name, samples)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) handoverOnce(c *candidate, n, grants int, length time.Duration) ([]int64, error) {
	const hold = 500 * time.Microsecond
	path := filepath.Join(b.dir, "handover")
	boardPath := filepath.Join(b.dir, "board")
	os.Remove(boardPath)
	board, err := mapBoard(boardPath)
	if err != nil {
		return nil, err
	}
	var children []*child
	for i := range n {
		var ch *child
		if c.name == bareC {
			ch, err = startCommand(exec.Command(b.bareC, "handover", path, boardPath, strconv.Itoa(i+1), strconv.Itoa(int(hold))))
		} else {
			ch, err = startJob(job{Do: "handover", Cand: c.name, Path: path, Board: boardPath, Me: i + 1, Hold: hold})
		}
		if err != nil {
			return nil, err
		}
		children = append(children, ch)
	}
	for limit := time.Now().Add(time.Minute); int(atomic.LoadUint32(&board.ready)) < n; {
		if time.Now().After(limit) {
			return nil, fmt.Errorf("%s: only %d of %d processes came up", c.name, atomic.LoadUint32(&board.ready), n)
		}
		time.Sleep(time.Millisecond)
	}
	atomic.StoreUint32(&board.start, 1)
	futexWake(&board.start)
	for limit := time.Now().Add(length); time.Now().Before(limit) && int(atomic.LoadUint32(&board.grants)) < grants; {
		time.Sleep(5 * time.Millisecond)
	}
	atomic.StoreUint32(&board.stop, 1)
	futexWake(&board.grants)
	var all []int64
	for _, ch := range children {
		var s []int64
		if err := ch.wait(&s); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		all = append(all, s...)
	}
	return all, unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(board)), 4096))
}
