//go:build !unix

package main

import (
	"os"
	"syscall"
)

const (
	noTTY     = 0
	directory = os.O_RDONLY | syscall.O_CLOEXEC
	readOnly  = os.O_RDONLY | syscall.O_CLOEXEC
)

// Descriptors are not inherited by number here: a lock lasts as long as flockctx.

func inherited(fd int, name string) *os.File { return nil }

func setInherited(f *os.File, on bool) error { return nil }

func keepInode(f *os.File) (release func()) { return func() {} }

func raise(s syscall.Signal) {}

func status(p *os.ProcessState) int {
	if p == nil {
		return 1
	}
	return p.ExitCode()
}

func width(f *os.File) int { return 0 }

func inBackground(f *os.File) bool { return false }

func device(dev uint64) (major, minor uint32) { return uint32(dev >> 32), uint32(dev) }
