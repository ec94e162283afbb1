//go:build !linux

package sys

import "errors"

type kind uint8

const unknown kind = 0

// fileSystem names a file system; here nothing tells.
type fileSystem struct {
	name string
	kind kind
}

func fileSystemOf(uintptr) fileSystem { return fileSystem{name: "the file system"} }

func kindOf(uintptr, uint64) kind { return unknown }

func (kind) hasHandles() bool { return false }
func (kind) deniesBusy() bool { return false }
func (kind) addsLocks() bool  { return false }

func (kind) refusesDirectories() error { return nil }

const atEmptyPath, atFollow = 0, 0

func handleOf(dir int, path string, flags int) uint64 { return 0 }

func createWhole(path string, flag int, mode uint32) (uintptr, error) {
	return 0, errors.ErrUnsupported
}

func reopens(path string, flag int, err error) (again bool, meaning error) { return false, err }

func isPathOnly(fd uintptr) bool { return false }

func (kind) lookError(err error) error { return err }

// CanLockRanges returns an error where byte ranges do not exclude each other.
func (d *Descriptor) CanLockRanges() error { return nil }

// TellsFilesApart reports whether files of one FileID are one file for certain.
func (d *Descriptor) TellsFilesApart() bool { return true }

func (d *Descriptor) refresh(string) error { return nil }

func sameDescription(a, b uintptr) bool { return a == b }
