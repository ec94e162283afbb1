//go:build !linux

package main

import (
	"os"
	"syscall"
)

var fatal = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM}

func dieByDefault() {}
