//go:build unix

// Etcdserver runs one etcd server in the folder that is its argument, prints where its
// clients connect, and ends with its stdin. It is for tests in other modules.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/flockctx/flockctx/locker/etcd/etcdtest"
)

func main() {
	etcdtest.Main()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: etcdserver folder")
		os.Exit(2)
	}
	c, err := etcdtest.Open(os.Args[1], 1)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(c.Endpoints()[0])
	io.Copy(io.Discard, os.Stdin)
	c.Close()
}
