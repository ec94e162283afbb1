package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// takeSlots starts n processes that take all slots of a file, and returns one of them.
func takeSlots(t *testing.T, f string, n int) (cmd *exec.Cmd) {
	t.Helper()
	slots := fmt.Sprint(n)
	for range n {
		c := exec.Command(flockctxPath, "-F", "--slots", slots, f, "sleep", "3333")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			c.Process.Kill()
			c.Wait()
		})
		cmd = c
	}
	eventually(t, "all slots are taken", func() bool {
		return exec.Command(flockctxPath, "-n", "-E", "9", "--slots", slots, f, "true").Run() != nil
	})
	return cmd
}

func TestSlots(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			// mkdir fails where somebody else has the same slot.
			code, out, errs := bash(t, dir, flockctxPath, `$F --slots 3 x -c 'mkdir $FLOCKCTX_SLOT && sleep 0.1 && rmdir $FLOCKCTX_SLOT && echo $FLOCKCTX_SLOT'`)
			if code != 0 || !strings.Contains("0\n1\n2\n", out) || errs != "" {
				t.Errorf("status %d, %q, %q", code, out, errs)
			}
		})
	}
	wg.Wait()
}

func TestSlotsWithOtherOptions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		script string
		code   int
		out    string
	}{
		// full is a file with two slots, both taken.
		{`$F --slots 2 -n full true`, 1, ""},
		{`$F --slots 2 -n -E 75 full true`, 75, ""},
		{`$F --slots 2 -w 0.1 -E 76 full true`, 76, ""},
		{`$F --slots 2 -w 0 full true`, 1, ""},
		{`$F --slots 3 -n full sh -c 'echo $FLOCKCTX_SLOT'`, 0, "2\n"},
		{`$F --slots=3 -n full -c 'echo $FLOCKCTX_SLOT'`, 0, "2\n"},
		{`$F --slots 3 -F full sh -c 'echo $FLOCKCTX_SLOT'`, 0, "2\n"},
		{`$F --slots 3 --fcntl -x full sh -c 'echo $FLOCKCTX_SLOT'`, 0, "2\n"},
		{`$F -n full sh -c 'echo "[$FLOCKCTX_SLOT]"'`, 0, "[]\n"}, // the lock is another matter
		{`$F --slots 2 new sh -c 'exit 7'`, 7, ""},
		{`$F --slots 2 new no-such-command`, 69, ""},
		{`$F --slots 1 new true; stat -c %s new`, 0, "0\n"},
		// What the command leaves behind keeps the slot, but with -o.
		{`$F --slots 1 new sh -c 'sleep 600 >/dev/null 2>&1 & echo $! >pid'; $F --slots 1 -n new true; echo $?; kill $(cat pid)`, 0, "1\n"},
		{`$F --slots 1 -o new sh -c 'sleep 600 >/dev/null 2>&1 & echo $! >pid'; $F --slots 1 -n new true; echo $?; kill $(cat pid)`, 0, "0\n"},
		{`$F --slots 1 . true`, 66, ""},
		{`$F --slots 1 no/such/file true`, 66, ""},
		{`$F --slots 0 new true`, 64, ""},
		{`$F --slots -1 new true`, 64, ""},
		{`$F --slots x new true`, 64, ""},
		{`$F --slots 9999999999 new true`, 64, ""},
		{`$F --slots 2 new`, 64, ""},
		{`$F --slots 2 9 9>new`, 64, ""},
		{`$F --slots 2 --fd 9 true 9>new`, 64, ""},
		{`$F --slots 2 -s new true`, 64, ""},
		{`$F --slots 2 -u new true`, 64, ""},
		{`$F --slots 2 --also y new true`, 64, ""},
		{`$F --slots 2 --remove new true`, 64, ""},
		{`$F --slots 2 --start 5 new true`, 64, ""},
		{`$F --slots 2 --length 5 new true`, 64, ""},
		{`[ -e new ]; echo $?; $F --slots 2 -o -F new true`, 64, "1\n"},
	} {
		dir := t.TempDir()
		takeSlots(t, filepath.Join(dir, "full"), 2)
		code, out, errs := bash(t, dir, flockctxPath, c.script)
		if code != c.code || out != c.out {
			t.Errorf("%s: status %d, %q, %q; want %d, %q", c.script, code, out, errs, c.code, c.out)
		}
		if code == 64 && strings.Count(errs, "\n") != 1 {
			t.Errorf("%s says %q", c.script, errs)
		}
	}
}

func TestSlotsAreNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := filepath.Join(dir, "x")
	h := takeSlots(t, f, 1)
	held := fmt.Sprintf("held by pid %d (", h.Process.Pid)
	_, _, errs := bash(t, dir, flockctxPath, "$F --slots 1 -n --verbose "+f+" true")
	if want := "flockctx: failed to get a slot of " + f + ": " + held; !strings.HasPrefix(errs, want) {
		t.Errorf("-n: %q; want %q", errs, want)
	}
	_, _, errs = bash(t, dir, flockctxPath, "$F --slots 1 -w 0.3 --verbose "+f+" true")
	if want := "flockctx: waiting for a slot of " + f + ": " + held; !strings.HasPrefix(errs, want) {
		t.Errorf("-w: %q; want %q", errs, want)
	}
	_, out, _ := bash(t, dir, flockctxPath, "$F --list "+f)
	if !strings.Contains(out, "  slot 0  ") || !strings.Contains(out, fmt.Sprint(h.Process.Pid)) {
		t.Errorf("--list: %q", out)
	}
	_, _, errs = bash(t, dir, flockctxPath, "$F --slots 2 --verbose "+f+" true")
	if !strings.HasPrefix(errs, "flockctx: getting a slot took ") {
		t.Errorf("--verbose: %q", errs)
	}
}

// A signal ends the wait for a slot, which is then the next one's.
func TestSlotsInterrupted(t *testing.T) {
	t.Parallel()
	f := filepath.Join(t.TempDir(), "x")
	h := takeSlots(t, f, 1)
	var waiters []*exec.Cmd
	for range 2 {
		cmd := exec.Command(flockctxPath, "--slots", "1", f, "true")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waiters = append(waiters, cmd)
		waitsFor(t, f, len(waiters))
	}
	waiters[0].Process.Signal(syscall.SIGTERM)
	waiters[0].Wait()
	if s, ok := waiters[0].ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGTERM {
		t.Errorf("ended by %v; want SIGTERM", waiters[0].ProcessState)
	}
	h.Process.Kill()
	if err := waiters[1].Wait(); err != nil {
		t.Error(err)
	}
}

// waitsFor waits until n processes want a slot of the file.
func waitsFor(t *testing.T, f string, n int) {
	t.Helper()
	eventually(t, "it waits", func() bool {
		_, out, _ := call(t, "--list", f)
		return strings.Count(out, "any slot") == n
	})
}

// Who may only read the file runs the command with --fcntl -u, as with flock(1).
func TestUnlockOfAFileThatMayOnlyBeRead(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: only root can become another user")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	as := "setpriv --reuid 65534 --regid 65534 --clear-groups "
	for script, want := range map[string]int{
		as + "$F --fcntl -u x true":  0,
		as + "$F --fcntl -s x true":  0,
		as + "$F --fcntl x true":     66,
		as + "$F --slots 2 x true":   66,
		as + "$F --slots 2 new true": 66,
	} {
		if code, _, errs := bash(t, dir, flockctxPath, script); code != want {
			t.Errorf("%s: status %d, %q; want %d", script, code, errs, want)
		}
	}
}

// As process 1 of a PID namespace flockctx is not ended by SIGTERM, as flock(1) is not:
// neither while it waits, nor while the command runs.
func TestProcessOne(t *testing.T) {
	if err := exec.Command("unshare", "--pid", "--fork", "true").Run(); err != nil {
		t.Skipf("SKIP: no PID namespace: %v", err)
	}
	for _, tool := range []string{"flock", flockctxPath} {
		dir := t.TempDir()
		f := filepath.Join(dir, "x")
		h := holder(t, f, "sleep", "3333")
		cmd := exec.Command("unshare", "--pid", "--fork", tool, f, "sh", "-c", "echo >ran; read x")
		cmd.Dir = dir
		stdin, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		var child int
		eventually(t, "it waits", func() bool {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
			fmt.Sscan(string(b), &child)
			_, out, _ := call(t, "--list", f)
			return child != 0 && strings.Count(out, "\n") == 3
		})
		term := func(when string) {
			for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
				syscall.Kill(child, sig)
			}
			time.Sleep(200 * time.Millisecond)
			if err := syscall.Kill(child, 0); err != nil {
				t.Errorf("%s, process 1, %s: a signal ended it", tool, when)
			}
		}
		term("waiting")
		h.Process.Kill()
		eventually(t, "the command runs", func() bool { _, err := os.Stat(filepath.Join(dir, "ran")); return err == nil })
		term("with the lock")
		stdin.Close()
		cmd.Wait()
	}
}
