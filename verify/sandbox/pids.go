//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// pids runs the command in a control group that may have so many tasks.
func pids(args []string) error {
	parent := ""
	for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		procs := filepath.Join(dir, "cgroup.procs")
		if _, err := os.Stat(procs); err == nil {
			parent = dir
			break
		}
	}
	if parent == "" {
		return unsupported("control groups", fs.ErrNotExist)
	}
	group, err := os.MkdirTemp(parent, "flockctx-")
	if err != nil {
		return unsupported("a control group", err)
	}
	remove := func() { os.Remove(group) }
	if err := os.WriteFile(filepath.Join(group, "pids.max"), []byte(args[0]), 0); err != nil {
		remove()
		return unsupported("pids.max", err)
	}
	// The shell enters the group before it becomes the command, so that all threads
	// of the command count.
	script := `echo $$ >"$0/cgroup.procs" && exec "$@"`
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, group}, args[1:]...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = run(cmd, remove)
	return errors.Join(fmt.Errorf("in %s", group), err)
}
