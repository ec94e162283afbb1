//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// machines are the marks by which the kernel knows programs: class, byte order and
// e_machine of the ELF header.
var machines = map[string]struct {
	class, order byte
	machine      uint16
}{
	"386": {1, 1, 3}, "amd64": {2, 1, 62}, "arm": {1, 1, 40}, "arm64": {2, 1, 183},
	"loong64": {2, 1, 258}, "mips": {1, 2, 8}, "mips64": {2, 2, 8}, "mips64le": {2, 1, 8},
	"mipsle": {1, 1, 8}, "ppc64": {2, 2, 21}, "ppc64le": {2, 1, 21}, "riscv64": {2, 1, 243}, "s390x": {2, 2, 22},
}

// binfmt registers QEMU in a user namespace of its own (Linux 6.7), so that the
// machine's own registrations stay as they are.
func binfmt(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("binfmt: want QEMU, ARCH and a command")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	all := []syscall.SysProcIDMap{{HostID: 0, ContainerID: 0, Size: 1 << 16}}
	cmd := exec.Command(self, append([]string{"binfmt-inside"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings:                all,
		GidMappings:                all,
		GidMappingsEnableSetgroups: true,
		Pdeathsig:                  syscall.SIGKILL,
	}
	return unsupported("a user namespace", run(cmd, func() {}))
}

func binfmtInside(args []string) error {
	const dir = "/proc/sys/fs/binfmt_misc"
	m, ok := machines[args[1]]
	if !ok {
		return fmt.Errorf("no such processor: %s", args[1])
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return unsupported("private mounts", err)
	}
	if err := unix.Mount("binfmt_misc", dir, "binfmt_misc", 0, ""); err != nil {
		return unsupported("binfmt_misc in a user namespace", err)
	}
	kind, machine := [2]byte{0, 2}, [2]byte{byte(m.machine >> 8), byte(m.machine)}
	if m.order == 1 {
		kind, machine = [2]byte{2, 0}, [2]byte{machine[1], machine[0]}
	}
	var magic, mask strings.Builder
	add := func(b, m byte) { fmt.Fprintf(&magic, `\x%02x`, b); fmt.Fprintf(&mask, `\x%02x`, m) }
	for _, b := range []byte{0x7f, 'E', 'L', 'F', m.class, m.order, 1} {
		add(b, 0xff)
	}
	for range 9 { // the rest of e_ident, whatever it is
		add(0, 0)
	}
	for _, b := range append(kind[:], machine[:]...) {
		add(b, 0xff)
	}
	// F: open the interpreter now; P: keep argv[0]; O and C: pass the open file and its credentials.
	line := fmt.Sprintf(":%s:M::%s:%s:%s:FPOC", args[1], magic.String(), mask.String(), args[0])
	if err := os.WriteFile(dir+"/register", []byte(line), 0); err != nil {
		return unsupported("binfmt_misc", err)
	}
	return become(args[2:])
}
