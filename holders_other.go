//go:build !linux

package flockctx

import (
	"runtime"

	"github.com/flockctx/flockctx/internal/sys"
)

func sysHolders(path string, all bool) ([]Holder, error) {
	if !all {
		if _, err := sys.Identify(path); err != nil {
			return nil, err
		}
	}
	return nil, sys.Unsupported("%s does not tell who holds a lock", runtime.GOOS)
}
