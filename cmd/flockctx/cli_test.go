package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
)

// isWaiting reports whether a process waits for f.
func isWaiting(t *testing.T, f string, pid int) bool {
	t.Helper()
	hs, err := flockctx.Holders(f)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(hs, func(h flockctx.Holder) bool { return h.Waiting && h.PID == pid })
}

// A wait of hours ends within 50 ms of SIGINT. The best of a few counts: the machine
// may have other things to do.
func TestInterruptDuringLongWait(t *testing.T) {
	f := filepath.Join(t.TempDir(), "f")
	holder(t, f, "sleep", "3333")
	best := time.Hour
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGINT, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		// As in a shell: the status of what a signal ended is 128 more.
		cmd := exec.Command(flockctxPath, "-w", "36000", f, "true")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it waits", func() bool { return isWaiting(t, f, cmd.Process.Pid) })
		start := time.Now()
		cmd.Process.Signal(sig)
		cmd.Wait()
		best = min(best, time.Since(start))
		if got := status(cmd.ProcessState); got != 128+int(sig) {
			t.Errorf("status %d after %v; want %d", got, sig, 128+int(sig))
		}
		if isWaiting(t, f, cmd.Process.Pid) {
			t.Error("it still waits")
		}
	}
	t.Logf("ended within %v", best)
	if best > 50*time.Millisecond {
		t.Errorf("ended %v after the signal at best; want 50ms", best)
	}
}

// The lock was granted when the signal came: it ends the program all the same.
func TestInterruptWithGrant(t *testing.T) {
	err := interruptible(t.Context(), func(ctx context.Context) error {
		syscall.Kill(os.Getpid(), syscall.SIGTERM)
		<-ctx.Done()
		return nil
	})
	if sig, ok := errors.AsType[signalError](err); !ok || sig.signal != syscall.SIGTERM {
		t.Errorf("%v; want the signal", err)
	}
}

// Two hundred commands on one file all run, one at a time.
func TestBurst(t *testing.T) {
	dir := t.TempDir()
	code, out, errs := bash(t, dir, flockctxPath, `
echo 0 >n
for i in $(seq 200); do
	$F f sh -c 'mkdir inside || echo overlap; read n <n; echo $((n+1)) >n; rmdir inside' &
	pids="$pids $!"
done
for p in $pids; do wait $p || echo failed; done
cat n`)
	if code != 0 || out != "200\n" || errs != "" {
		t.Errorf("status %d, %q, %q; want 200", code, out, errs)
	}
}

// Starting it costs at most three times what flock(1) costs. The two take turns, so
// that the load of the machine falls on both.
func TestStartUp(t *testing.T) {
	installed(t)
	f := filepath.Join(t.TempDir(), "f")
	run := func(tool string) time.Duration {
		start := time.Now()
		if err := exec.Command(tool, f, "true").Run(); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	var ratio float64
	for range 3 {
		var ours, theirs []time.Duration
		for range 60 {
			theirs = append(theirs, run("flock"))
			ours = append(ours, run(flockctxPath))
		}
		slices.Sort(ours)
		slices.Sort(theirs)
		ratio = float64(ours[30]) / float64(theirs[30])
		t.Logf("median %v, of flock %v: %.2f times", ours[30], theirs[30], ratio)
		if ratio <= 3 {
			return
		}
	}
	t.Errorf("%.2f times what flock takes; want 3", ratio)
}

func TestAlso(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"all are held", `$F a --also b 2>/dev/null; echo $?; $F --also b --also c a bash -c "$(declare -f held); held a; held b; held c"; echo $?; held b`, "69\nexclusive\nexclusive\nexclusive\n0\nfree\n"},
		{"none is held where one is busy", `hold '' b; $F -n --also b --also c a echo x; echo $?; held a; held c`, "1\nfree\nfree\n"},
		{"none is held at the end of -w", `hold '' b; $F -w .1 -E 7 --also=b --also c a echo x; echo $?; held a; held c`, "7\nfree\nfree\n"},
		{"it waits", `hold '' b; $F --also b a echo got & waiting b; flock -u 8; wait $!; echo $?`, "got\n0\n"},
		{"a file twice", `touch a; ln a b; ln -s a c; $F -n --also a --also b --also c a echo x; echo $?; $F --also b a echo y`, "x\n0\ny\n"},
		{"directories among them", `mkdir d; $F --also d a bash -c "$(declare -f held); held d; held a"; $F --also a d echo x`, "exclusive\nexclusive\nx\n"},
		{"a script that locks itself", `printf '#!/bin/sh\necho script\n' >s; chmod +x s; $F --also b s ./s; echo $?; hold '' b; $F --also b s ./s & waiting b; flock -u 8; wait $!; echo $?`, "script\n0\nscript\n0\n"},
		{"one is removed while it is waited for", `hold '' b; $F --also c --also b a echo got & waiting b; rm -f c; flock -u 8; wait $!; echo $?; ls`, "got\n0\na\nb\nc\n"},
		{"shared", `hold -s b; $F -sn --also b a bash -c "$(declare -f held); held a; held b"; $F -n --also b a echo x; echo $?`, "shared\nshared\n1\n"},
		{"-o", `$F -o --also b a sh -c 'ls -l /proc/self/fd | grep -c "/[ab]$"'; $F --also b a sh -c 'ls -l /proc/self/fd | grep -c "/[ab]$"'`, "0\n2\n"},
		{"with --fcntl", `exec 8>>b; $F --fcntl 8; $F --fcntl -n --also b a echo x; echo $?; $F --fcntl -u 8; $F --fcntl -n --also b a echo x`, "1\nx\n"},
		{"a missing directory", `$F --also no/such a echo x; echo $?`, "66\n"},
		{"not with a descriptor", `$F --also a 9 9>b; echo $?; $F --also a --fd 9 true 9>b; echo $?; $F -u --also a b true; echo $?`, "64\n64\n64\n"},
		{"interrupted", `hold '' b; $F --also b a echo x & waiting b; kill $!; wait $!; echo $?; held a`, "143\nfree\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, out, errs := bash(t, t.TempDir(), flockctxPath, prelude+c.script)
			if out != c.want {
				t.Errorf("%s: %q, %s; want %q", c.script, out, errs, c.want)
			}
		})
	}
}

// In whatever order the files are given, nobody waits for ever.
func TestAlsoNeverDeadlocks(t *testing.T) {
	code, out, errs := bash(t, t.TempDir(), flockctxPath, `
for i in $(seq 20); do
	timeout 120 $F --also b --also c a sh -c 'mkdir x && rmdir x' & pids="$pids $!"
	timeout 120 $F --also b --also a c sh -c 'mkdir x && rmdir x' & pids="$pids $!"
	timeout 120 $F --also c --also a b sh -c 'mkdir x && rmdir x' & pids="$pids $!"
done
for p in $pids; do wait $p || echo failed $?; done; echo done`)
	if code != 0 || out != "done\n" || errs != "" {
		t.Errorf("status %d, %q, %q", code, out, errs)
	}
}

func TestRemove(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"at the end", `$F --remove f sh -c 'ls; exit 3'; echo $?; ls`, "f\n3\n"},
		{"all of several", `$F --remove --also g f ls; ls`, "f\ng\n"},
		{"by -c", `$F --remove f -c ls; ls`, "f\n"},
		{"with -o", `$F --remove -o f ls; ls`, "f\n"},
		{"with --fcntl", `$F --remove --fcntl f ls; ls`, "f\n"},
		{"a read-only file", `touch f; chmod 400 f; $F --remove f true; ls`, ""},
		{"shared: the last one", `hold -s; $F --remove -s f true; ls; flock -u 8; $F --remove -s f true; ls`, "f\n"},
		{"not under a child that has the lock", `$F --remove f sh -c 'sleep 60 >/dev/null 2>&1 & echo $! >pid'; ls; held; kill $(cat pid)`, "f\npid\nexclusive\n"},
		{"not where it is another file by now", `$F --remove f sh -c 'echo new >g; mv g f'; cat f; $F --remove f sh -c 'rm f; echo new >f'; cat f; $F --remove f sh -c 'mv f g; ln -s g f'; ls`, "new\nnew\ng\n"},
		{"not where another one has it by now", `$F --remove f sh -c 'mv f g; echo new >f; exec 8>>f; flock 8; sleep 60 >/dev/null 2>&1 & echo $! >pid'; ls; kill $(cat pid)`, "f\ng\npid\n"},
		{"not where it was not got", `hold; $F --remove -n f true; echo $?; ls`, "1\nf\n"},
		{"gone already", `$F --remove f rm f; echo $?; ls`, "0\n"},
		{"a directory stays", `mkdir d; $F --remove d true; ls`, "d\n"},
		{"the command is missing", `$F --remove f no-such-command; echo $?; ls`, "69\n"},
		{"not with -F, nor with a descriptor", `$F -F --remove f true; echo $?; $F --remove 9 9>f; echo $?; ls`, "64\n64\nf\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, out, errs := bash(t, t.TempDir(), flockctxPath, prelude+c.script)
			if out != c.want {
				t.Errorf("%s: %q, %s; want %q", c.script, out, errs, c.want)
			}
		})
	}
}

// Where all remove the file, still one at a time is inside.
func TestRemoveUnderWaiters(t *testing.T) {
	code, out, errs := bash(t, t.TempDir(), flockctxPath, `
echo 0 >n
for i in $(seq 40); do
	$F --remove f sh -c 'mkdir inside || echo overlap; read n <n; echo $((n+1)) >n; rmdir inside' & pids="$pids $!"
done
for p in $pids; do wait $p || echo failed; done
cat n; rm n; ls`)
	if code != 0 || out != "40\n" || errs != "" {
		t.Errorf("status %d, %q, %q", code, out, errs)
	}
}

// Every option is in the help, the manual page and the completions.
func TestOptionsAreDocumented(t *testing.T) {
	long := []string{
		"shared", "exclusive", "unlock", "nonblock", "wait", "timeout", "conflict-exit-code", "close", "command",
		"no-fork", "fd", "fcntl", "start", "length", "also", "slots", "remove", "verbose", "quiet", "list", "json", "probe", "help", "version",
	}
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, text := range map[string]string{
		"--help":                    help,
		"flockctx.1":                strings.ReplaceAll(read("flockctx.1"), `\-`, "-"),
		"completions/flockctx.bash": read("completions/flockctx.bash"),
		"completions/_flockctx":     read("completions/_flockctx"),
	} {
		for _, o := range long {
			if !strings.Contains(text, "--"+o) {
				t.Errorf("%s lacks --%s", name, o)
			}
		}
	}
	for _, o := range long {
		args := []string{"--" + o, "--nonsense"}
		if o == "command" {
			continue
		}
		if _, err := parse(args); err != nil && strings.Contains(err.Error(), o) && strings.Contains(err.Error(), "unknown") {
			t.Errorf("--%s is documented and unknown", o)
		}
	}
}

func TestManualPage(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	out, err := exec.Command("groff", "-man", "-Tutf8", "-ww", "-z", "flockctx.1").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

func TestCompletion(t *testing.T) {
	complete := func(words ...string) []string {
		t.Helper()
		script := `. completions/flockctx.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_command_offset() { COMPREPLY=("offset:$1"); }
_flockctx flockctx "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; printf '%s\n' "${COMPREPLY[@]}"`
		out, err := exec.Command("bash", append([]string{"-c", script, "bash"}, words...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	spaced := filepath.Join(t.TempDir(), "a file")
	if err := os.WriteFile(spaced, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		words []string
		want  []string
	}{
		{[]string{"flockctx", "--exc"}, []string{"--exclusive"}},
		{[]string{"flockctx", "-n", "--pro"}, []string{"--probe"}},
		{[]string{"flockctx", "main.g"}, []string{"main.go"}},
		{[]string{"flockctx", "--also", "main.g"}, []string{"main.go"}},
		{[]string{"flockctx", "--probe", "complet"}, []string{"completions"}},
		{[]string{"flockctx", "-w", ""}, []string{"0", "1", "10", "60"}},
		{[]string{"flockctx", "f", "--comm"}, []string{"--command"}},
		{[]string{"flockctx", "f", "setpri"}, []string{"setpriv"}},
		{[]string{"flockctx", "-w", "5", "x.lock", "git", "ch"}, []string{"offset:4"}},
		{[]string{"flockctx", "--wait", "=", "5", "setpri"}, []string{""}},
		{[]string{"flockctx", "--wait", "=", "5", "f", "setpri"}, []string{"setpriv"}},
		{[]string{"flockctx", "--slots", "4", "main.g"}, []string{"main.go"}},
		{[]string{"flockctx", "-nw", "5", "main.g"}, []string{"main.go"}},
		{[]string{"flockctx", "--also", "=", "main.g"}, []string{"main.go"}},
		{[]string{"flockctx", "--fd", "9", "--exc"}, []string{"--exclusive"}},
		{[]string{"flockctx", "--fd", "9", "-n", "setpri"}, []string{"setpriv"}},
		{[]string{"flockctx", "--fd", "9", "git", "ch"}, []string{"offset:3"}},
		{[]string{"flockctx", "--", "-f", "setpri"}, []string{"setpriv"}},
		{[]string{"flockctx", strings.TrimSuffix(spaced, "file")}, []string{spaced}},
	} {
		if got := complete(c.words...); !slices.Equal(slices.Compact(got), c.want) {
			t.Errorf("%q: %q; want %q", c.words, got, c.want)
		}
	}
	if _, err := exec.LookPath("zsh"); err != nil {
		t.Logf("SKIP: the completion for zsh is not checked: %v", err)
	} else if out, err := exec.Command("zsh", "-n", "completions/_flockctx").CombinedOutput(); err != nil {
		t.Errorf("zsh: %v: %s", err, out)
	}
}

func TestParseNumbers(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "7": 7, "4K": 4096, "4KiB": 4096, "4kB": 4000, "1.5M": 1572864, "2GB": 2e9, " 3": 3,
		"010": 8, "0x1000": 4096, "0X1fK": 31 << 10, "+5": 5, "0.5K": 512, "010K": 8192, "1.5e": 3 << 59} {
		if n, err := parseSize(s, ""); n != want || err != nil {
			t.Errorf("size %q: %d, %v; want %d", s, n, err, want)
		}
	}
	for _, s := range []string{"", "x", "-1", "1.5", "1Z", "1KiBx", "9E", "99999999999999999999", "K", "08", "0x", "+-1", "1_0", ".5K", "7.99E.5"} {
		if n, err := parseSize(s, ""); err == nil {
			t.Errorf("size %q: %d", s, n)
		}
	}
	for s, want := range map[string]timeout{
		"1.5": {set: true, d: 1500 * time.Millisecond}, "0": {set: true}, "1e-7": {set: true}, "-1e-9": {set: true},
		"1e18": {set: true, d: 1<<63 - 1}, "-1": {set: true, invalid: true}, "nan": {set: true, invalid: true},
	} {
		if got, err := parseTimeout(s); got != want || err != nil {
			t.Errorf("timeout %q: %+v, %v; want %+v", s, got, err, want)
		}
	}
}

func TestInTheWay(t *testing.T) {
	bsd := flockctx.Options{}
	ofd := flockctx.Options{Mechanism: flockctx.OFD, Start: 10, Length: 5}
	shared := ofd
	shared.Mode = flockctx.Shared
	rest := flockctx.Options{Mechanism: flockctx.OFD, Start: 20}
	for _, c := range []struct {
		h    flockctx.Holder
		r    flockctx.Options
		want bool
	}{
		{flockctx.Holder{}, bsd, true},
		{flockctx.Holder{Mechanism: flockctx.OFD}, bsd, false},
		{flockctx.Holder{Mechanism: flockctx.OFD}, ofd, true},
		{flockctx.Holder{Mechanism: flockctx.POSIX, Start: 14, Length: 1}, ofd, true},
		{flockctx.Holder{Mechanism: flockctx.OFD, Start: 15}, ofd, false},
		{flockctx.Holder{Mechanism: flockctx.OFD, Length: 10}, ofd, false},
		{flockctx.Holder{Mechanism: flockctx.OFD, Length: 11}, ofd, true},
		{flockctx.Holder{Mechanism: flockctx.OFD, Start: 1 << 62, Length: 1 << 62}, rest, true},
		{flockctx.Holder{Mechanism: flockctx.OFD, Mode: flockctx.Shared}, shared, false},
		{flockctx.Holder{Mechanism: flockctx.OFD, Mode: flockctx.Shared}, ofd, true},
	} {
		if got := inTheWay(c.h, &c.r); got != c.want {
			t.Errorf("%+v, %+v: %v; want %v", c.h, c.r, got, c.want)
		}
	}
}

func TestVersion(t *testing.T) {
	b := &debug.BuildInfo{}
	if v := versionOf(b); v != "(devel)" {
		t.Errorf("nothing known: %s", v)
	}
	b.Main.Version = "v1.2.3"
	if v := versionOf(b); v != "v1.2.3" {
		t.Errorf("a release: %s", v)
	}
	b.Settings = []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "false"}}
	if v := versionOf(b); v != "v1.2.3 (commit abc)" {
		t.Errorf("a checkout: %s", v)
	}
	b.Settings[1].Value = "true"
	if v := versionOf(b); v != "v1.2.3 (commit abc, with changes)" {
		t.Errorf("a checkout with changes: %s", v)
	}
}

func TestFit(t *testing.T) {
	const held = ": held by pid 4711 (rsync -a src dst)" + timeMark + " since 3 s" + timeMark
	for _, c := range []struct {
		path, rest string
		n          int
		want       string
	}{
		{"x.lock", held, 79, "waiting for x.lock: held by pid 4711 (rsync -a src dst) since 3 s"},
		{"/var/lib/a/long/way/to/x.lock", held, 79, "waiting for …/long/way/to/x.lock: held by pid 4711 (rsync -a src dst) since 3 s"},
		{"/var/lib/a/long/way/to/x.lock", held, 65, "waiting for …g/way/to/x.lock: held by pid 4711 (rsync…) since 3 s"},
		{"/var/lib/a/long/way/to/x.lock", held, 50, "held by pid 4711 (rsync -a src dst) since 3 s"},
		{"/var/lib/a/long/way/to/x.lock", held, 39, "held by pid 4711 (rsync -a …) since 3 s"},
		{"/var/lib/a/long/way/to/x.lock", " (3 s)", 39, "waiting for …a/long/way/to/x.lock (3 s)"},
	} {
		got := fit("waiting for ", c.path, c.rest, c.n)
		if got != c.want || columns([]rune(got)) > c.n {
			t.Errorf("fit(%q, %q, %d) = %q; want %q", c.path, c.rest, c.n, got, c.want)
		}
	}
}

func TestCut(t *testing.T) {
	const m = timeMark
	for _, c := range []struct {
		line string
		n    int
		want string
	}{
		{"short" + m + " since 3 s" + m, 40, "short since 3 s"},
		{"held by pid 1 (a long command)" + m + " since 3 s" + m, 30, "held by pid 1 (a l…) since 3 s"},
		{"a line without a time in it", 12, "a line with…"},
		{"anything", 3, "any"},
		{"held by pid 1 (長い長い長い命令)" + m + " since 3 s" + m, 30, "held by pid 1 (長…) since 3 s"},
		{"長い長い命令", 7, "長い長"},
		{"e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"},
	} {
		got := cut(c.line, c.n)
		if got != c.want || columns([]rune(got)) > c.n {
			t.Errorf("cut(%q, %d) = %q; want %q", c.line, c.n, got, c.want)
		}
	}
	if got := untimed("a" + m + " since 3 s" + m + ", b" + m + " since 4 s" + m); got != "a, b" {
		t.Errorf("untimed: %q", got)
	}
	if got := fmt.Sprint(printable("a\x1b[2Jb\nc\u202e")); got != "a?[2Jb?c?" {
		t.Errorf("printable: %q", got)
	}
}
