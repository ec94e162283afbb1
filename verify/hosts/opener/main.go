//go:build linux && cgo

// Opener waits for a lock in a plugin, and beside it by itself.
//
//	opener PLUGIN PATH
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"plugin"
	"sync"
	"time"

	"github.com/flockctx/flockctx"
)

func main() {
	p, err := plugin.Open(os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	symbol, err := p.Lookup("Wait")
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	inside := symbol.(func(string, flockctx.Wait, time.Duration) error)
	time.AfterFunc(20*time.Second, func() { fmt.Println("HANG"); os.Exit(3) })
	for _, wait := range []flockctx.Wait{flockctx.WaitAuto, flockctx.WaitBlock, flockctx.WaitPoll} {
		start := time.Now()
		var beside error
		var own sync.WaitGroup
		own.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			_, beside = flockctx.Lock(ctx, os.Args[2], &flockctx.Options{Wait: wait})
		})
		err := inside(os.Args[2], wait, 300*time.Millisecond)
		own.Wait()
		fmt.Printf("plugin, %v: returned after %v\n", wait, time.Since(start).Round(time.Millisecond))
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(beside, context.DeadlineExceeded) {
			fmt.Println(err, beside)
			os.Exit(1)
		}
	}
}
