//go:build linux

package verify

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

type toggleConfig struct {
	Path string
	Opts flockctx.Options
}

func init() {
	helpers["toggle"] = func(raw json.RawMessage) error {
		var c toggleConfig
		if err := json.Unmarshal(raw, &c); err != nil {
			return err
		}
		fmt.Println("ready")
		return toggle(context.Background(), c)
	}
}

// toggle locks and unlocks until ctx ends: what others look like to a waiter whose
// grant and end of ctx must meet.
func toggle(ctx context.Context, c toggleConfig) error {
	l := flockctx.New(c.Path, &c.Opts)
	defer l.Close()
	for ctx.Err() == nil {
		if err := l.Lock(context.Background()); err != nil {
			return err
		}
		pause(300 * time.Microsecond)
		if err := l.Unlock(); err != nil {
			return err
		}
		pause(50 * time.Microsecond)
	}
	return nil
}

// lockers returns the processes that /proc/locks says hold a lock on the file. An
// open file description lock names -1; this process is then looked up in its own
// fdinfo.
func lockers(t testing.TB, st unix.Stat_t) (pids []int) {
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(locks), "\n") {
		if strings.Contains(line, "->") || !strings.Contains(line, want+" ") {
			continue
		}
		var pid int
		var kind, how, mode string
		if _, err := fmt.Sscan(line, new(string), &kind, &how, &mode, &pid); err == nil {
			if pid == -1 {
				fds, _ := os.ReadDir("/proc/self/fdinfo")
				for _, fd := range fds {
					info, _ := os.ReadFile("/proc/self/fdinfo/" + fd.Name())
					if strings.Contains(string(info), "OFDLCK") && strings.Contains(string(info), want+" ") {
						pid = os.Getpid()
					}
				}
			}
			pids = append(pids, pid)
		}
	}
	return pids
}
