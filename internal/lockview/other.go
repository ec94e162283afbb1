//go:build !linux

package lockview

import (
	"errors"
	"fmt"
	"runtime"
)

// Of returns an error that matches [errors.ErrUnsupported].
func Of(path string, own func(*File) []Waiter) ([]Lock, error) { return All(own) }

// All returns an error that matches [errors.ErrUnsupported].
func All(own func(*File) []Waiter) ([]Lock, error) {
	return nil, fmt.Errorf("%s does not tell who holds a lock: %w", runtime.GOOS, errors.ErrUnsupported)
}
