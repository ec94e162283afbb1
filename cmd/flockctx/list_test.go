package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// locked starts what holds f, and what waits for it, in every way there is.
const locked = prelude + `
touch f g h
ready() { until grep -q ready "$1"; do sleep .01; done; rm "$1"; }
bg() { "$@" >/dev/null 2>&1 & pids="$pids $!"; }
$H posix f >r1 & pids="$pids $!"; ready r1
$H posix-read f >r2 & pids="$pids $!"; ready r2
$H ofd h >r3 & pids="$pids $!"; ready r3
$H lease g >r4 & pids="$pids $!"; ready r4
exec 8>>f; flock 8
sh -c 'exec 7>>h; flock -s 7; sleep 600 >/dev/null 2>&1 & echo $! >orphan'
flock -s h sleep 600 >/dev/null 2>&1 & pids="$pids $!"
until [ "$(grep -c "FLOCK.*READ.*:$(stat -c %i h) " /proc/locks)" = 2 ]; do sleep .01; done
bg flock f true
bg $F -s f true
bg $H posix f
bg $F --fcntl --start 12 --length 1 h true
until [ "$(grep -c -- "->.*:$(stat -c %i f) " /proc/locks)" = 3 ] && [ "$(grep -c -- "->.*:$(stat -c %i h) " /proc/locks)" = 1 ]; do sleep .01; done
finish() { kill $pids $(cat orphan) $(pgrep -P "$(echo $pids | tr ' ' ,)"); wait; } 2>/dev/null
trap finish EXIT
`

type lslocksEntry struct {
	PID     int    `json:"pid"`
	Type    string `json:"type"`
	Mode    string `json:"mode"`
	Start   int64  `json:"start"`
	End     int64  `json:"end"`
	Path    string `json:"path"`
	Blocker *int   `json:"blocker"`
	Inode   uint64 `json:"inode"`
}

func TestListAgreesWithLslocks(t *testing.T) {
	if _, err := exec.LookPath("lslocks"); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	dir := t.TempDir()
	code, out, errs := bash(t, dir, flockctxPath, locked+`
for i in $(seq 20); do lslocks -J -b -o PID,TYPE,MODE,START,END,PATH,BLOCKER,INODE >lslocks$i; done
$F --list --json f g h >ours
$F --list --json >all
$F --list f g h >table
echo $$ >shell
`)
	if code != 0 {
		t.Fatalf("status %d: %s%s", code, out, errs)
	}
	read := func(name string, v any) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = json.Unmarshal(text, v)
		}
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, text)
		}
	}
	var ours, all struct{ Locks []entry }
	read("ours", &ours)
	read("all", &all)

	inodes := make(map[uint64]string)
	for _, name := range []string{"f", "g", "h"} {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		inodes[st.Ino] = name
	}
	// Both in one form: what both know. lslocks names the process that took a
	// lock, and for OFD none.
	// The kernel's table shifts while lslocks reads it, where other processes lock
	// files: it then has entries twice or lacks some. Mostly it has not.
	var got, fromAll []string
	readings := make(map[string]int)
	for i := range 20 {
		var theirs struct{ Locks []lslocksEntry }
		read(fmt.Sprint("lslocks", i+1), &theirs)
		var locks []string
		for _, l := range theirs.Locks {
			name, ok := inodes[l.Inode]
			if !ok {
				continue
			}
			if l.Type == "OFDLCK" {
				l.PID = 0
			}
			locks = append(locks, fmt.Sprint(name, " ", l.Type, " ", l.PID, " ", l.Mode, " ", l.Start, " ", l.End))
		}
		slices.Sort(locks)
		readings[strings.Join(locks, "\n")]++
	}
	most := ""
	for reading, n := range readings {
		if n > readings[most] {
			most = reading
		}
	}
	want := strings.Split(most, "\n")
	form := func(e entry, path string) string {
		kind := map[string]string{"flock": "FLOCK", "posix": "POSIX", "ofd": "OFDLCK", "lease": "LEASE"}[e.Kind]
		mode := map[string]string{"exclusive": "WRITE", "shared": "READ"}[e.Mode]
		if e.Waiting {
			mode += "*"
		}
		locker, end := 0, int64(0)
		if e.Locker != nil {
			locker = *e.Locker
		}
		if e.End != nil {
			end = *e.End
		}
		return fmt.Sprint(path, " ", kind, " ", locker, " ", mode, " ", e.Start, " ", end)
	}
	for _, e := range ours.Locks {
		got = append(got, form(e, e.Path))
	}
	for _, e := range all.Locks {
		if name, ok := inodes[e.Inode]; ok {
			fromAll = append(fromAll, form(e, name))
		}
	}
	slices.Sort(got)
	slices.Sort(fromAll)
	if !slices.Equal(got, want) {
		t.Errorf("--list --json f g h\n%s\nlslocks\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !slices.Equal(fromAll, want) {
		t.Errorf("--list --json\n%s\nlslocks\n%s", strings.Join(fromAll, "\n"), strings.Join(want, "\n"))
	}
	if len(got) != 11 {
		t.Errorf("%d locks; want 11: %s", len(got), strings.Join(got, "\n"))
	}

	// What lslocks does not know: who has it now.
	var orphan, shell int
	readNumber(t, filepath.Join(dir, "orphan"), &orphan)
	readNumber(t, filepath.Join(dir, "shell"), &shell)
	// The shell's children have its descriptor as well, and any of them may have
	// the lowest number.
	holder := 0
	for _, e := range ours.Locks {
		if e.Kind == "flock" && e.Path == "f" && !e.Waiting && e.PID != nil {
			holder = *e.PID
			if holder != shell && !slices.Contains(e.Others, shell) {
				t.Errorf("held by %+v; want process %d among them", e, shell)
			}
		}
	}
	found := false
	table, _ := os.ReadFile(filepath.Join(dir, "table"))
	for _, e := range ours.Locks {
		if e.PID == nil || e.Command == "" {
			if e.Kind != "ofd" || !e.Waiting { // for which the kernel does not say who waits
				t.Errorf("without process or command: %+v", e)
			}
			continue
		}
		found = found || *e.PID == orphan && *e.Locker != orphan && !e.Waiting
		if e.Waiting && (e.WaitsFor == nil || e.Kind == "flock" && *e.WaitsFor != holder) {
			t.Errorf("waits for whom? %+v", e)
		}
		if !e.Waiting && e.WaitsFor != nil {
			t.Errorf("holds and waits: %+v", e)
		}
		if !strings.Contains("\n"+string(table), fmt.Sprintf("\n%d", *e.PID)) {
			t.Errorf("process %d is missing in the table: %s", *e.PID, table)
		}
	}
	if !found {
		t.Errorf("process %d, which inherited a lock, is missing: %+v", orphan, ours.Locks)
	}
}

func readNumber(t *testing.T, path string, n *int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		_, err = fmt.Sscan(string(text), n)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestListNothing(t *testing.T) {
	f := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := call(t, "--list", f); code != 0 || out != "" || errs != "" {
		t.Errorf("--list: status %d, %q, %q", code, out, errs)
	}
	code, out, _ := call(t, "--list", "--json", f)
	if code != 0 || strings.Join(strings.Fields(out), "") != `{"locks":[]}` {
		t.Errorf("--list --json: status %d, %q", code, out)
	}
	if code, _, errs := call(t, "--list", f, "/no/such"); code != exitNoInput || !strings.Contains(errs, "/no/such") {
		t.Errorf("a missing file: status %d, %q", code, errs)
	}
	if code, _, _ := call(t, "--json", f); code != exitUsage {
		t.Errorf("--json alone: status %d", code)
	}
}

func TestListWithoutTable(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: a PID namespace needs root")
	}
	dir := t.TempDir()
	_, out, errs := bash(t, dir, flockctxPath, `touch f; unshare -pfm sh -c 'mount -t proc -o subset=pid proc /proc && { $F --list f; echo $?; $F --list; echo $?; }'`)
	if strings.Contains(errs, "unshare") || strings.Contains(errs, "mount") {
		t.Skipf("SKIP: no /proc without /proc/locks: %s", errs)
	}
	if out != "71\n71\n" || strings.Count(errs, "there is no /proc/locks") != 2 {
		t.Errorf("%q, %q; want status %d", out, errs, exitSystem)
	}
}

// What another user's process does may not be seen; that it has the lock is.
func TestListAsAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: becoming another user needs root")
	}
	dir := t.TempDir()
	for d := dir; strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	code, out, errs := bash(t, dir, flockctxPath, prelude+`
flock -F f sleep 600 >/dev/null & echo $! >&2; trap "kill $!" EXIT
until [ "$(held)" = exclusive ]; do :; done
setpriv --reuid 65534 --regid 65534 --clear-groups $F --list f; echo $?
setpriv --reuid 65534 --regid 65534 --clear-groups $F --list --json f | tr -d ' \n'; echo
setpriv --reuid 65534 --regid 65534 --clear-groups $F --list | grep -c "locked by pid $!)"
`)
	var holder int
	fmt.Sscan(errs, &holder)
	for _, want := range []string{
		"?  ", fmt.Sprintf("(cannot be seen; locked by pid %d)\n0\n", holder),
		`"pid":null,"command":"","kind":"flock"`, fmt.Sprintf(`"locker":%d,`, holder), "\n1\n",
	} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("status %d, %q lacks %q; %s", code, out, want, errs)
		}
	}
}
