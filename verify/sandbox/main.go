//go:build linux

// Sandbox runs a command where something is denied or emulated:
//
//	sandbox seccomp CALL[,CALL…]=ERRNO COMMAND…   system calls fail (EPERM, ENOSYS, EACCES) or raise SIGSYS (trap)
//	sandbox landlock COMMAND…                     no signals to processes outside, no abstract sockets from outside
//	sandbox pids N COMMAND…                       not more than N tasks, in a control group of its own
//	sandbox binfmt QEMU ARCH COMMAND…             programs of ARCH run under QEMU, and so do those that they start
//
// It ends with the status of the command, or with 77 where the system cannot do what
// it was asked for.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/flockctx/flockctx/verify/internal/seccomp"
)

const unavailable = 77 // what this system cannot do

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: sandbox seccomp|landlock|pids|binfmt … COMMAND…")
		os.Exit(2)
	}
	runtime.LockOSThread() // what is denied is denied to the thread that becomes the command
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "seccomp":
		if err = seccomp.Deny(args[0]); err == nil {
			err = become(args[1:])
		}
	case "landlock":
		err = landlock(args)
	case "pids":
		err = pids(args)
	case "binfmt":
		err = binfmt(args)
	case "binfmt-inside":
		err = binfmtInside(args)
	default:
		err = fmt.Errorf("no such sandbox: %s", os.Args[1])
	}
	fmt.Fprintln(os.Stderr, "sandbox:", err)
	if errors.Is(err, errors.ErrUnsupported) {
		os.Exit(unavailable)
	}
	os.Exit(2)
}

// become runs command in place of this program. It returns only if it cannot.
func become(command []string) error {
	if len(command) == 0 {
		return errors.New("no command")
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	return &os.PathError{Op: "exec", Path: path, Err: syscall.Exec(path, command, os.Environ())}
}

// run runs command and ends with its status, after cleanup.
func run(cmd *exec.Cmd, cleanup func()) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	cleanup()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		os.Exit(128 + int(status.Signal()))
	}
	os.Exit(cmd.ProcessState.ExitCode())
	return nil
}

func unsupported(what string, err error) error {
	return fmt.Errorf("%s: %w: %w", what, err, errors.ErrUnsupported)
}
