package lease_test

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flockctx/flockctx/internal/lease"
)

const inNamespace = "LEASE_TEST_IN_NAMESPACE"

// TestNowCountsSuspend compares Now with CLOCK_BOOTTIME, here and, where that may be, in
// a time namespace in which that clock differs from CLOCK_MONOTONIC as after a suspend.
func TestNowCountsSuspend(t *testing.T) {
	read := func() lease.Instant {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
			t.Fatal(err)
		}
		return lease.Instant(ts.Nano())
	}
	before, now, after := read(), lease.Now(), read()
	if now < before || now > after {
		t.Errorf("Now is %d, CLOCK_BOOTTIME %d to %d", now, before, after)
	}
	if os.Getenv(inNamespace) != "" {
		return
	}
	cmd := exec.Command("unshare", "--time", "--boottime", "100000", os.Args[0], "-test.run=^TestNowCountsSuspend$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	out, err := cmd.CombinedOutput()
	if _, ran := errors.AsType[*exec.ExitError](err); err != nil && (!ran || len(out) == 0 || out[0] == 'u') {
		t.Logf("no time namespace can be made here: %v, %s", err, out)
	} else if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else {
		t.Logf("in a time namespace:\n%s", out)
	}
}
