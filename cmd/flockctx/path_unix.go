//go:build unix && !linux

package main

import "golang.org/x/sys/unix"

// There is no /proc to open a descriptor's file by: the open fails.
const pathOnly = unix.O_RDONLY
