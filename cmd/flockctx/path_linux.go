//go:build linux

package main

import "golang.org/x/sys/unix"

const pathOnly = unix.O_PATH
