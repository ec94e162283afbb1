//go:build !(linux && (amd64 || arm64 || riscv64))

package flockctx

import "io/fs"

// openPath and identifyPath are made faster where it can be done.
func openPath(path string, flag int, perm fs.FileMode) (descriptor, error) {
	return sysOpen(path, flag, perm)
}

func identifyPath(path string) (fileID, error) { return sysIdentify(0, path) }
