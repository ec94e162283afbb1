//go:build !unix

package lockertest

import (
	"errors"
	"os"
)

const canFreeze = false

func freeze(*os.Process) error { return errors.ErrUnsupported }
func thaw(*os.Process) error   { return errors.ErrUnsupported }
