// Flockctx runs a command while it holds a lock on a file. It does what flock(1) of
// util-linux does, in the same way, and says who holds a lock, takes several at
// once, and tells whether locks work in a directory.
package main

import (
	"context"
	"os"
)

func main() {
	dieByDefault()
	os.Exit(exit(Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)))
}
