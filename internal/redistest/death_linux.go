package redistest

import "syscall"

// endWithTest has a process killed when the test's process ends, however it does.
func endWithTest(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }
