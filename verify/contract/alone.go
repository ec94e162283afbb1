package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/flockctx/flockctx"
)

// wait waits for a lock that another process should hold, and says how that ended. A
// wait that hangs ends with status 3.
func wait(args []string) int {
	o, timeout := &flockctx.Options{}, 300*time.Millisecond
	for _, arg := range args[1:] {
		switch arg {
		case "auto":
			o.Wait = flockctx.WaitAuto
		case "block":
			o.Wait = flockctx.WaitBlock
		case "poll":
			o.Wait = flockctx.WaitPoll
		default:
			d, err := time.ParseDuration(arg)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 2
			}
			timeout = d
		}
	}
	start := time.Now()
	time.AfterFunc(timeout+*slack, func() {
		fmt.Printf("HANG: Lock has not returned %v after its deadline\n", *slack)
		time.AfterFunc(*hung, func() { os.Exit(3) })
	})
	_, err := lock(args[0], o, timeout)
	late := time.Since(start) - timeout
	fmt.Printf("returned after %v: %v\n", time.Since(start).Round(time.Millisecond), err)
	switch {
	case kindOf(err) != ended:
		return 1
	case late > *slack:
		return 3
	}
	return 0
}

// hold holds the lock for a time, and says what it then learns of it.
func hold(args []string) int {
	d := time.Hour
	if len(args) > 1 {
		seconds, err := strconv.Atoi(args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		d = time.Duration(seconds) * time.Second
	}
	l, err := flockctx.Lock(context.Background(), args[0], nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("held")
	time.Sleep(d)
	fmt.Println("Locked:", l.Locked())
	_, err = l.File().WriteAt([]byte("x"), 0)
	fmt.Println("write:", err)
	fmt.Println("sync:", l.File().Sync())
	fmt.Println("Unlock:", l.Unlock())
	fmt.Println("Close:", l.Close())
	return 0
}

// many has N goroutines wait at once, each for a file that another process holds, and
// says how many threads that took. All must end with the deadline.
func many(dir string, count string) int {
	n, err := strconv.Atoi(count)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	p, err := startPeer()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	defer endPeer()
	path := func(i int) string { return fmt.Sprintf("%s/many-%d-%d", dir, os.Getpid(), i) }
	for i := range n {
		if err := p.do(order{Do: "lock", Handle: path(i), Path: path(i)}); err != nil {
			fmt.Println("the peer:", err)
			return 1
		}
		defer os.Remove(path(i))
	}
	errs, start := make(chan error, n), time.Now()
	for i := range n {
		go func() {
			_, err := lock(path(i), &exclusive, 2*time.Second)
			errs <- err
		}()
	}
	time.Sleep(time.Second)
	threads, _ := os.ReadDir("/proc/self/task")
	for range n {
		if err := <-errs; kindOf(err) != ended {
			fmt.Println(err)
			return 1
		}
	}
	fmt.Printf("%d waits with a deadline of 2 s: all ended by %v, %d threads\n", n, time.Since(start).Round(time.Millisecond), len(threads))
	if time.Since(start) > 2*time.Second+*slack {
		return 3
	}
	return 0
}

// beside has goroutines lock files in a folder that does not answer, and says how long
// it takes to lock a free file elsewhere.
func beside(hung, free string) int {
	for i := range 40 {
		go flockctx.Lock(context.Background(), fmt.Sprintf("%s/beside-%d", hung, i), nil)
	}
	time.Sleep(time.Second)
	start := time.Now()
	_, err := lock(free, &exclusive, 20*time.Second)
	fmt.Printf("beside 40 goroutines at %s: %s locked after %v: %v\n", hung, free, time.Since(start).Round(time.Millisecond), err)
	if err != nil || time.Since(start) > *slack {
		return 1
	}
	return 0
}
