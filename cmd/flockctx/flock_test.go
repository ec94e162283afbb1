package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// A flockCase is a script that is run with flock(1) and with flockctx as $F. Its
// exit status, standard output and the files that it leaves have to be the same.
// What it does to locks the script itself prints, by asking flock(1).
type flockCase struct {
	what   string
	script string
	// since is the version of util-linux that has it, if not all have. With an
	// older one flockctx has to do what want says, as flock's manual has it.
	since string
	want  string // status, a space, and standard output
}

// until has the cases that versions of util-linux from this one on do otherwise, and
// what flockctx does all the same, as the older ones do.
var until = map[string]struct{ version, want string }{
	// --start came, and made --s ambiguous.
	"abbreviations that flock(1) knew first": {"2.42", "0 0\n0\n0\n1\n1\n1\nfree\n"},
	// A negative number became a usage error.
	"a negative descriptor": {"2.43", "0 65\n"},
}

// In the scripts: hold takes the lock on f in the shell itself, held says who could
// take it now, waiting returns when a process waits for f.
const prelude = `
hold() { exec 8>>"${2:-f}"; flock $1 8; }
held() { if flock -n "${1:-f}" true; then echo free; elif flock -sn "${1:-f}" true; then echo shared; else echo exclusive; fi; }
waiting() { for i in $(seq 1000); do grep -q -- "->.*:$(stat -c %i "${1:-f}") " /proc/locks && return; sleep .01; done; echo nobody waits; }
`

var flockCases = []flockCase{
	// The forms.
	{"run a command", `$F f echo hello; echo $?`, "", ""},
	{"arguments as they are", `$F f printf '%s|' a 'b c' '' '*' -n --shared; echo $?`, "", ""},
	{"options end at the first operand", `$F f echo -n x -c --verbose; echo $?`, "", ""},
	{"-- ends the options", `$F -- f echo x; echo $?`, "", ""},
	{"a file whose name begins with -", `$F -- -f echo x; echo $?; ls`, "", ""},
	{"a command that begins with -", `$F f -n true 2>/dev/null; echo $?`, "", ""},
	{"-c runs a shell", `$F f -c 'echo $((1+2)); exit 5'; echo $?`, "", ""},
	{"--command after the file", `$F f --command 'echo "$0"'; echo $?`, "", ""},
	{"-c with $SHELL", `SHELL=/bin/echo $F f -c 'a b'; echo $?`, "", ""},
	{"-c without $SHELL", `unset SHELL; $F f -c 'echo $0'; echo $?`, "", ""},
	{"-c with an empty $SHELL", `SHELL= $F f -c 'echo $0'; echo $?`, "", ""},
	{"-c without a command", `$F f -c; echo $?; ls`, "", ""},
	{"-c with two", `$F f -c a b; echo $?; ls`, "", ""},
	{"-c before the file is no option", `$F -c 'echo x' f; echo $?; ls`, "", ""},
	{"a directory", `mkdir d; $F d echo x; echo $?; ls -A d`, "", ""},
	{"a directory, with the lock held", `mkdir d; exec 8<d; flock 8; $F -n d true; echo $?`, "", ""},
	{"a descriptor", `exec 9>f; $F 9; echo $?; held`, "", ""},
	{"a descriptor, and a new one", `exec 9>f; $F 9; exec 9>&-; held`, "", ""},
	{"a descriptor open for reading", `touch f; exec 9<f; $F 9; echo $?; held`, "", ""},
	{"a descriptor of a directory", `mkdir d; exec 9<d; $F 9; echo $?; held d`, "", ""},
	{"a descriptor in a subshell", `( $F -n 9 || exit 1; echo in; held ) 9>f; held`, "", ""},
	{"a descriptor of a pipe", `$F 9 9> >(cat); echo $?`, "", ""},
	{"a descriptor of a device", `$F 9 9</dev/null; echo $?`, "", ""},
	{"standard input as descriptor", `$F 0 <<<x; echo $?; touch f; $F -s 0 <f; echo $?`, "", ""},
	{"the script itself, as in the manual", `printf '%s\n' '[ "${FLOCKER}" != "$0" ] && exec env FLOCKER="$0" "$F" -en "$0" "$0" "$@" || :' 'echo "in $@"' >s; sed -i '1i #!/bin/sh' s; chmod +x s; ./s a b; echo $?`, "", ""},

	// Exit statuses.
	{"the command's status", `for s in 0 1 2 64 69 126 127 255; do $F f sh -c "exit $s"; echo $?; done`, "", ""},
	{"the command's signal", `for s in TERM KILL SEGV PIPE HUP INT; do $F f sh -c "kill -$s "'$$'; echo $?; done 2>/dev/null`, "", ""},
	{"a command that does not exist", `$F f no-such-command 2>/dev/null; echo $?; held`, "", ""},
	{"a command by path that does not exist", `$F f ./no/such; echo $?`, "", ""},
	{"a command that may not be executed", `echo x >c; $F f ./c; echo $?`, "", ""},
	{"a directory as command", `mkdir d; $F f ./d; echo $?`, "", ""},
	{"an empty command", `$F f ''; echo $?`, "", ""},
	{"a script without #!", `echo 'echo script $1 $0' >c; chmod +x c; $F f ./c a; echo $?`, "", ""},
	{"a script with a missing interpreter", `printf '#!/no/such\n' >c; chmod +x c; $F f ./c; echo $?`, "", ""},
	{"an empty file as command", `:>c; chmod +x c; $F f ./c; echo $?`, "", ""},
	{"not a program", `printf '\177ELFrubbish' >c; chmod +x c; $F f ./c 2>/dev/null; echo $?`, "", ""},
	{"a command in . by PATH", `printf '#!/bin/sh\necho dot\n' >mine; chmod +x mine; PATH=.:$PATH $F f mine; echo $?`, "", ""},
	{"a command by an empty PATH element", `printf '#!/bin/sh\necho dot\n' >mine; chmod +x mine; PATH=:/nowhere $F f mine; echo $?`, "", ""},
	{"without PATH", `t=$F; unset PATH; $t f echo x; echo $?`, "", ""},
	{"the first in PATH may not be executed", `mkdir a b; echo 1 >a/mine; printf '#!/bin/sh\necho second\n' >b/mine; chmod +x b/mine; PATH=$PWD/a:$PWD/b:$PATH $F f mine; echo $?`, "", ""},
	{"none in PATH may be executed", `mkdir a; echo 1 >a/mine; PATH=$PWD/a:$PATH $F f mine; echo $?`, "", ""},
	{"a missing directory", `$F no/such/f true; echo $?`, "", ""},
	{"a file below a file", `touch f; $F f/g true; echo $?`, "", ""},
	{"an empty name", `$F '' true; echo $?`, "", ""},
	{"a dangling link", `ln -s target l; $F l true; echo $?; ls`, "", ""},
	{"a loop of links", `ln -s l l; $F l true; echo $?`, "", ""},
	{"a name that is too long", `$F $(printf 'x%.0s' $(seq 300)) true; echo $?`, "", ""},
	{"a socket", `$H socket s; $F s true; echo $?`, "", ""},
	{"a device", `$F /dev/null echo x; echo $?`, "", ""},
	{"a FIFO, opened once", `mkfifo p; (exec 7>p; echo opened >o; cat <&7 >/dev/null 2>&1) & $F p echo x; echo $?; wait; cat o`, "", ""},
	{"a descriptor that is not open", `$F 77; echo $?`, "", ""},
	{"small descriptors that are not open", `for i in 3 4 5 6 7 8 9 10; do eval "exec $i>&-"; $F $i; echo $?; done`, "", ""},
	{"a negative descriptor", `$F -- -1; echo $?`, "", ""},
	{"closed standard descriptors", `$F 0 <&-; echo $?; $F -s 0 <&-; echo $?; $F 0 </dev/null; echo $?; $F 2 2>/dev/null; echo $?`, "", ""},
	{"a descriptor with more after it", `$F 9x; echo $?; ls`, "", ""},
	{"a descriptor out of range", `$F 99999999999; echo $?`, "", ""},
	{"a file that only root may write", `touch f; chmod 444 f; $F f echo x; echo $?`, "", ""},

	// Usage.
	{"nothing", `$F; echo $?`, "", ""},
	{"options only", `$F -n; echo $?; $F -s --verbose; echo $?`, "", ""},
	{"a file only", `$F f; echo $?; ls`, "", ""},
	{"an unknown option", `$F -Z f true; echo $?; $F --nonsense f true; echo $?; $F -nZ f true; echo $?; ls`, "", ""},
	{"-?", `$F '-?'; echo $?`, "", ""},
	{"an option that lacks its argument", `$F -w; echo $?; $F -E; echo $?; $F --wait; echo $?; $F -n --conflict-exit-code; echo $?`, "", ""},
	{"an argument that does not belong", `$F --shared=1 f true; echo $?; $F --nb= f true; echo $?; ls`, "", ""},
	{"-w with what is no number", `for w in x 1x 0x '' ' ' 1_0 1,5 --; do $F -w "$w" f true; echo $?; done; ls`, "", ""},
	{"-w with odd numbers", `for w in 1 1.5 .5 5. +1 ' 1' 1e0 0x10 0x1p3 1e-9 1e9 9999999999; do $F -w "$w" f true; echo $?; done`, "", ""},
	{"-w with numbers that no timer takes", `for w in -1 -0.5 inf nan 1e30 1e400 -inf infinity; do rm -f f; $F -w "$w" f echo x; echo $? $(ls); done`, "", ""},
	{"-w with such a number and no such file", `$F -w -1 no/such true; echo $?; $F -w -1 77; echo $?`, "", ""},
	{"-w -1 with a descriptor", `exec 9>f; $F -w -1 9; echo $?; held`, "", ""},
	{"-w=1 and -E=1", `$F -w=1 f true; echo $?; $F -E=1 f true; echo $?; $F -nw=1 f true; echo $?; ls`, "", ""},
	{"-E out of range", `for e in 256 -1 999 99999999999 x '' 0x5 1.5 ' '; do $F -E "$e" f true; echo $?; done; ls`, "", ""},
	{"-E with odd numbers", `hold; for e in 0 1 5 255 ' 5' +5 007; do $F -n -E "$e" f true; echo $?; done`, "", ""},
	{"-F with -o", `$F -F -o f true; echo $?; $F -oF f; echo $?; ls`, "", ""},
	{"--help and --version", `$F --help >/dev/null; echo $?; $F -h x y >/dev/null; echo $?; $F --version >/dev/null; echo $?; $F -V >/dev/null; echo $?; $F --help | grep -c exclusive`, "", ""},
	{"-h before what is wrong", `$F -h --nonsense >/dev/null; echo $?; $F --nonsense -h; echo $?; $F -sV -Z >/dev/null; echo $?`, "", ""},
	{"--help into a full device", `$F --help >/dev/full; echo $?`, "", ""},

	// The ways to write options.
	{"bundled options", `hold; $F -nE7 f true; echo $?; $F -xnE 8 f true; echo $?; $F -snE9 f true; echo $?`, "", ""},
	{"-w with its argument attached", `hold; $F -w.05 f true; echo $?; $F -w0.05 -E3 f true; echo $?`, "", ""},
	{"long options", `hold; for o in --nonblock --nonblocking --nb --wait=0.05 '--wait 0.05' --timeout=0.05; do $F $o f true; echo $?; done`, "", ""},
	{"--conflict-exit-code", `hold; $F -n --conflict-exit-code=33 f true; echo $?; $F -n --conflict-exit-code 34 f true; echo $?`, "", ""},
	{"abbreviations", `hold; for o in --nonb '--t .05' '--wa .05' --nb; do $F $o f true; echo $?; done; $F -n --con 4 f true; echo $?`, "", ""},
	{"ambiguous abbreviations", `for o in --no --ver --c; do $F $o f true; echo $?; done; ls`, "", ""},
	{"abbreviations that flock(1) knew first", `hold -s; for o in --s --sh --share; do $F -n $o f true; echo $?; done; for o in --e --ex --exc; do $F -n $o f true; echo $?; done; $F --u 8; held`, "", ""},
	{"abbreviated --close", `$F --cl f echo x; echo $?; $F --he >/dev/null; echo $?; $F --verb f true >/dev/null 2>&1; echo $?; $F --vers >/dev/null; echo $?`, "", ""},
	{"the last mode counts", `hold -s; $F -nxs f true; echo $?; $F -nsx f true; echo $?; $F -nsux f true; echo $?`, "", ""},
	{"the last timeout and status count", `hold; $F -w 9 -w .05 -E 3 -E 4 f true; echo $?`, "", ""},
	{"-e", `hold -s; $F -en f true; echo $?; $F -ne f true; echo $?`, "", ""},

	// What it does to the lock.
	{"exclusive while the command runs", `$F f bash -c "$(declare -f held); held"; held`, "", ""},
	{"shared while the command runs", `$F -s f bash -c "$(declare -f held); held"; held`, "", ""},
	{"-x while the command runs", `$F -x f bash -c "$(declare -f held); held"; held`, "", ""},
	{"-u while the command runs", `$F -u f bash -c "$(declare -f held); held"; held`, "", ""},
	{"-u beside a lock", `hold; $F -u f echo x; echo $?; $F -un f echo y; echo $?; held`, "", ""},
	{"shared beside shared", `hold -s; $F -sn f echo x; echo $?; $F -xn f echo y; echo $?`, "", ""},
	{"shared beside exclusive", `hold; $F -sn f echo x; echo $?`, "", ""},
	{"-n on a busy file", `hold; $F -n f echo x; echo $?; held`, "", ""},
	{"-n -E 0 on a busy file", `hold; $F -n -E 0 f echo x; echo $?; exec 9>>f; $F -n -E 0 9; echo $?`, "", ""},
	{"-w 0 on a busy file", `hold; $F -w 0 f echo x; echo $?; $F -w 0 -E 4 f echo x; echo $?; $F -w 0.0000001 -E 5 f echo x; echo $?`, "", ""},
	{"-w that expires", `hold; $F -w 0.1 f echo x; echo $?; $F -w 0.1 -E 200 f echo x; echo $?; held`, "", ""},
	{"-w that does not", `$F f sh -c 'echo in; sleep .3; echo out' & sleep .1; $F -w 60 f echo mine; echo $?; wait`, "", ""},
	{"-n on a busy descriptor", `hold; exec 9>>f; $F -n 9; echo $?; $F -w .05 9; echo $?; $F -sn -E9 9; echo $?`, "", ""},
	{"waiting for the end of another", `hold; $F f echo got & waiting; flock -u 8; wait $!; echo $?; held`, "", ""},
	{"waiting with a descriptor", `hold; exec 9>>f; ( $F 9; echo got $?; held ) & waiting; flock -u 8; wait $!; held`, "", ""},
	{"in the order they came", `hold; for i in 1 2 3 4; do $F f echo $i & p=$!; until [ "$(grep -c -- "->.*:$(stat -c %i f) " /proc/locks)" = $i ]; do sleep .01; done; done; flock -u 8; wait`, "", ""},
	{"-u of a descriptor", `exec 9>f; flock 9; held; $F -u 9; echo $?; held`, "", ""},
	{"-u of a descriptor without a lock", `exec 9>f; $F -u 9; echo $?; held; hold; $F -u 9; echo $?; held`, "", ""},
	{"the descriptor's lock outlives the command", `exec 9>f; $F 9; $F -n f true; echo $?; $F -u 9; $F -n f true; echo $?`, "", ""},
	{"twice the same descriptor", `exec 9>f; $F 9; $F -n 9; echo $?; held; $F -u 9; held`, "", ""},
	{"a descriptor from exclusive to shared", `exec 9>f; $F 9; held; $F -s 9; echo $?; held`, "", ""},
	{"a descriptor from shared to exclusive", `exec 9>f; $F -s 9; held; $F -x 9; echo $?; held`, "", ""},
	{"a failed conversion loses the lock", `exec 9>f; flock -s 9; hold -s; $F -xn 9; echo $?; flock -u 8; held`, "", ""},
	{"a duplicate of the descriptor", `exec 9>f 7>&9; $F 9; exec 9>&-; held; $F -u 7; held`, "", ""},
	{"children keep the lock", `$F f sh -c 'sleep 60 >/dev/null 2>&1 & echo $! >pid'; held; kill $(cat pid); for i in $(seq 500); do flock -n f true && break; sleep .01; done; held; rm pid`, "", ""},
	{"with -o they do not", `$F -o f sh -c 'sleep 60 >/dev/null 2>&1 & echo $! >pid'; held; kill $(cat pid); rm pid`, "", ""},
	{"with --close neither, and the lock is held meanwhile", `$F --close f bash -c "$(declare -f held); held"; held`, "", ""},
	{"the descriptor is inherited", `$F f sh -c 'ls -l /proc/self/fd | grep -c "/f$"'; $F -o f sh -c 'ls -l /proc/self/fd | grep -c "/f$"'`, "", ""},
	{"other descriptors are inherited", `exec 7>g; $F f sh -c 'echo x >&7'; cat g; $F -o f sh -c 'echo y >&7'; cat g`, "", ""},
	{"-F replaces the process", `bash -c 'echo $$ >p; exec $F -F f sh -c "echo \$\$ >q"'; cmp p q; echo $?; rm p q`, "", ""},
	{"-F holds the lock", `$F -F f bash -c "$(declare -f held); held"; held; $F --no-fork f sh -c 'exit 3'; echo $?`, "", ""},
	{"-F with -c", `$F -F f -c 'echo x; kill -9 $$' 2>/dev/null; echo $?`, "", ""},
	{"-F and a missing command", `$F -F f no-such-command; echo $?; held`, "", ""},
	{"two names of one file", `touch f; ln f g; ln -s f l; hold; $F -n g true; echo $?; $F -n l true; echo $?`, "", ""},
	{"two files", `hold '' g; $F -n f echo x; echo $?`, "", ""},
	{"inside itself", `$F f $F -n f echo x; echo $?; $F -s f $F -sn f echo y; echo $?`, "", ""},
	{"the file is removed meanwhile", `$F f rm f; echo $?; ls`, "", ""},
	{"contents stay", `echo data >f; $F f true; cat f; $F -x f cat f`, "", ""},

	// The files.
	{"a missing file is created", `umask 022; $F f stat -c '%a %s' f; umask 077; $F g stat -c %a g; umask 000; $F h stat -c %a h`, "", ""},
	{"a file is not touched", `echo x >f; touch -d 2001-01-01 f; $F f true; stat -c %Y f; chmod 640 f; $F f true; stat -c %a f`, "", ""},
	{"created also when the command is missing", `$F f no-such-command; echo $?; ls`, "", ""},
	{"created also with -u", `$F -u f true; echo $?; ls`, "", ""},
	{"a read-only file system", `$F /proc/flockctx-no-such true; echo $?; $F /sys/flockctx-no-such true; echo $?; $F /proc/version echo x; echo $?`, "", ""},
	{"too few descriptors", `ulimit -n 3; $F f true 2>/dev/null; [ $? -ge 64 ]; echo $?`, "", ""},

	// The command's surroundings.
	{"standard input", `echo data | $F f cat; echo $?; printf 'a\nb\n' | $F f head -n 1; $F f cat </dev/null; echo $?`, "", ""},
	{"standard output and error", `$F f sh -c 'echo out; echo err >&2' 2>e; cat e; rm e`, "", ""},
	{"environment and directory", `mkdir d; cd d; A='x y' B= $F ../f sh -c 'echo "$A|$B|${C-unset}|${PWD##*/}"'; cd ..; ls`, "", ""},
	{"the command's name", `$F f sh -c 'echo $0'; ln -s /bin/busybox echo2 2>/dev/null; $F f bash -c 'echo $0' name; rm -f echo2`, "", ""},
	{"the umask and limits", `umask 027; ulimit -n 100; $F f sh -c 'umask; ulimit -n'`, "", ""},
	{"ignored signals", `trap '' HUP; $F f sh -c 'kill -HUP $$; echo alive'; trap '' INT; $F f sh -c 'kill -INT $$; echo alive'`, "", ""},
	{"ignored children", `trap '' CHLD; $F f sh -c 'exit 3'; echo $?`, "", ""},
	{"a command that stops itself", `$F f sh -c 'kill -STOP $$; echo on' & until [ -n "$(ps -o stat= --ppid $! | grep T)" ]; do sleep .01; done; pkill -CONT -P $!; wait $!; echo $?`, "", ""},

	// Signals.
	{"SIGTERM while waiting", `hold; $F f echo x & waiting; kill $!; wait $!; echo $?; flock -u 8; held`, "", ""},
	{"SIGHUP while waiting", `hold; $F f echo x & waiting; kill -HUP $!; wait $!; echo $?; held`, "", ""},
	{"SIGINT while waiting", `set -m; hold; $F f echo x & waiting; kill -INT $!; wait $!; echo $?; held`, "", ""},
	{"SIGKILL while waiting", `hold; $F f echo x & waiting; kill -9 $!; wait $!; echo $?; held`, "", ""},
	{"SIGTERM with -w", `hold; $F -w 60 -E 9 f echo x & waiting; kill $!; wait $!; echo $?`, "", ""},
	{"SIGTERM while the command runs", `$F f sh -c 'echo $$ >pid; exec sleep 60' & until [ -s pid ]; do sleep .01; done; kill $!; wait $!; echo $?; held; kill $(cat pid); for i in $(seq 500); do flock -n f true && break; sleep .01; done; held; rm pid`, "", ""},
	{"SIGTERM to the command", `$F f sh -c 'echo $$ >pid; exec sleep 60' & until [ -s pid ]; do sleep .01; done; kill $(cat pid); wait $!; echo $?; held; rm pid`, "", ""},
	{"other signals while waiting", `ulimit -c 0; set -m; hold; for s in QUIT ABRT TRAP SYS USR1 USR2 ALRM VTALRM PROF XCPU XFSZ IO PWR; do $F f echo x & waiting; kill -$s $!; wait $!; echo $s $?; done 2>/dev/null; held`, "", ""},
	{"other signals while the command runs", `ulimit -c 0; set -m; for s in QUIT ABRT TRAP SYS USR1 USR2 ALRM VTALRM PROF XCPU XFSZ IO PWR; do rm -f pid; $F f sh -c 'echo $$ >pid; exec sleep 60' & until [ -s pid ]; do sleep .01; done; kill -$s $!; wait $!; echo $s $?; kill $(cat pid); flock f true; done 2>/dev/null; rm pid`, "", ""},
	{"SIGQUIT that a shell ignores for a background job", `hold; $F f echo got & waiting; kill -QUIT $!; sleep .1; flock -u 8; wait $!; echo $?`, "", ""},
	{"SIGUSR1 by timeout", `ulimit -c 0; hold; timeout -s USR1 .2 $F f echo x 2>/dev/null; echo $?; timeout --preserve-status -s USR1 .2 $F f echo x 2>/dev/null; echo $?`, "", ""},
	{"ignored signals while waiting", `trap '' HUP; hold; $F f echo got & waiting; kill -HUP $!; sleep .1; flock -u 8; wait $!; echo $?`, "", ""},

	// --verbose: flock(1) writes to standard output, flockctx to standard error.
	{"--verbose: status", `$F --verbose f sh -c 'exit 3' >/dev/null 2>&1; echo $?; hold; $F --verbose -n f true >/dev/null 2>&1; echo $?; $F --verbose -w .05 f true >/dev/null 2>&1; echo $?`, "", ""},
	{"--verbose: the texts, wherever they go", `$F --verbose f true 2>&1 | sed -E 's/^flock(ctx)?: //; s/[0-9.]+ sec/N sec/'`, "", ""},

	// What later versions have.
	{"--fcntl", `$F --fcntl f echo x; echo $?; $F --fcntl -s f echo y; echo $?`, "2.41", "0 x\n0\ny\n0\n"},
	{"--fcntl meets itself", `exec 8>>f; $F --fcntl 8; $F --fcntl -n f true; echo $?; $F --fcntl -sn f true; echo $?; $F --fcntl -u 8; $F --fcntl -n f true; echo $?`, "2.41", "0 1\n1\n0\n"},
	{"--fcntl does not meet flock(2)", `hold; $F --fcntl -n f echo x; echo $?`, "2.41", "0 x\n0\n"},
	{"--fcntl meets POSIX locks", `touch f; $H posix f >r & p=$!; until grep -q ready r; do sleep .01; done; $F --fcntl -n f true; echo $?; kill $p; rm r`, "2.41", "0 1\n"},
	{"--fcntl -w", `exec 8>>f; $F --fcntl 8; $F --fcntl -w .05 -E 6 f true; echo $?`, "2.41", "0 6\n"},
	{"--start and --length", `exec 8>>f; $F --start 10 --length 5 8; for r in '0 10' '15 5' '10 1' '14 1' '0 11' '0 0'; do set -- $r; $F -n --start $1 --length $2 f true; echo $?; done`, "2.42", "0 0\n0\n1\n1\n1\n1\n"},
	{"--start with a suffix", `exec 8>>f; $F --start 1K --length=1KiB 8; $F -n --start 2048 --length 1 f true; echo $?; $F -n --start 2047 --length 1 f true; echo $?; $F --start x f true; echo $?; $F --length 1Z f true; echo $?`, "2.42", "0 0\n1\n64\n64\n"},
	{"--start and --length in other bases", `exec 8>>f; $F --start 010 --length +5 8; for r in '0 8' '8 1' '12 1' '13 1' '0x8 1' '0xd 1'; do set -- $r; $F -n --start $1 --length $2 f true; echo $?; done; $F --start 08 f true; echo $?; $F --start 0x f true; echo $?`, "2.42", "0 0\n1\n1\n0\n1\n0\n64\n64\n"},
	{"--fcntl exclusive needs a descriptor open for writing", `touch f; exec 9<f; $F --fcntl 9; echo $?; $F --fcntl -s 9; echo $?`, "2.41", "0 65\n0\n"},
	{"--fcntl on a directory", `mkdir d; $F --fcntl -s d echo x; echo $?; $F --fcntl d echo x; echo $?`, "2.41", "0 x\n0\n65\n"},
	{"--fd with a command", `exec 9>f; $F --fd 9 bash -c "$(declare -f held); held; exit 4"; echo $?; held`, "2.43", "0 exclusive\n4\nexclusive\n"},
	{"--fd with -c", `exec 9>f; $F --fd=9 -c 'echo x'; echo $?; $F -s --fd 9 -c 'exit 3'; echo $?; held`, "2.43", "0 x\n0\n3\nshared\n"},
	{"--fd on a busy file", `hold; exec 9>>f; $F -n --fd 9 echo x; echo $?; $F -w .05 -E 5 --fd 9 echo x; echo $?`, "2.43", "0 1\n5\n"},
	{"--fd -o", `exec 9>f; $F -o --fd 9 sh -c 'echo x >&9' 2>/dev/null; echo $?; held`, "2.43", "0 2\nexclusive\n"},
	{"--fd -F", `exec 9>f; $F -F --fd 9 echo x; echo $?; held`, "2.43", "0 x\n0\nexclusive\n"},
	{"--fd without a command", `exec 9>f; $F --fd 9; echo $?; held; $F --fd -1 echo x; echo $?; $F --fd=-1; echo $?`, "2.43", "0 64\nfree\n64\n64\n"},
	{"--fd of standard input, with -o", `touch f; $F -o --fd 0 sh -c '[ "$(readlink /proc/self/fd/0)" = "$PWD/f" ]; echo $?' <f; echo $?`, "2.43", "0 1\n0\n"},
	{"--fd that is not open", `$F --fd 77 echo x; echo $?; $F --fd x echo x; echo $?; $F --fd; echo $?`, "2.43", "0 65\n64\n64\n"},
}

// installed returns the version of flock(1), or skips the test.
func installed(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("flock", "--version").Output()
	if err != nil {
		t.Skipf("SKIP: flock(1) is not installed: %v", err)
	}
	f := strings.Fields(string(out))
	return f[len(f)-1]
}

// older reports whether version a is older than b.
func older(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(x), len(y)) {
		m, _ := strconv.Atoi(x[i])
		n, _ := strconv.Atoi(y[i])
		if m != n {
			return m < n
		}
	}
	return len(x) < len(y)
}

// outcome is what a script does, with a tool.
func (c flockCase) outcome(t *testing.T, tool string) (string, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := bash(t, dir, tool, prelude+c.script)
	var files []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		files = append(files, e.Name())
	}
	return fmt.Sprintf("%d %s", code, stdout), fmt.Sprintf("files %q, stderr %q", files, stderr)
}

func TestLikeFlock(t *testing.T) {
	version := installed(t)
	flock, err := exec.LookPath("flock")
	if err != nil {
		t.Fatal(err)
	}
	rows := make([]string, len(flockCases))
	var same atomic.Int32
	t.Run("cases", func(t *testing.T) {
		for i, c := range flockCases {
			t.Run(strconv.Itoa(i+1), func(t *testing.T) {
				t.Parallel()
				want, wantMore, by := c.want, "", "its manual"
				last, changed := until[c.what]
				changed = changed && !older(version, last.version)
				if changed {
					want = last.want
				}
				if !changed && (c.since == "" || !older(version, c.since)) {
					want, wantMore = c.outcome(t, flock)
					by = "side by side"
					same.Add(1)
				}
				got, more := c.outcome(t, flockctxPath)
				if got != want || wantMore != "" && filesOf(more) != filesOf(wantMore) {
					t.Errorf("%s: %s\n flock:    %q, %s\n flockctx: %q, %s", c.what, c.script, want, wantMore, got, more)
				}
				switch {
				case c.since != "":
					by = "flock " + c.since
				case last.version != "":
					by = "side by side, before " + last.version
				}
				rows[i] = fmt.Sprintf("| %d | %s | %s | %s | %s |\n", i+1, cell(c.what), code(c.script), code(brief(want)), by)
			})
		}
	})
	if t.Failed() || slices.Contains(rows, "") {
		return // some were not run
	}
	if same := same.Load(); same < 80 {
		t.Errorf("%d cases were run side by side; want 80", same)
	}
	checkTable(t, rows)
}

func filesOf(more string) string {
	before, _, _ := strings.Cut(more, ", stderr")
	return before
}

var spaces = regexp.MustCompile(`\s+`)

// cell makes text fit a cell of a table, and code does so for code.
func cell(s string) string { return strings.ReplaceAll(spaces.ReplaceAllString(s, " "), "|", `\|`) }

func code(s string) string {
	s = cell(s)
	fence := "`"
	for strings.Contains(s, fence) {
		fence += "`"
	}
	return fence + " " + s + " " + fence
}

// brief is the standard output of a case, in one line.
func brief(outcome string) string {
	_, stdout, _ := strings.Cut(outcome, " ")
	return strings.ReplaceAll(strings.TrimSpace(stdout), "\n", " / ")
}

const tableFile = "../../docs/cli-cases.md"

const tableHead = `# flock(1) and flockctx, side by side

This file is written by ` + "`go test -run TestLikeFlock -update`" + ` in cmd/flockctx, and that test fails
where it is out of date. Each case is a script of bash that was run twice, with ` + "`$F`" + ` set to
flock(1) of util-linux 2.38.1 and to flockctx. Exit status, standard output and the files left
behind were the same; the output, its lines separated by "/", is the third column. What the
installed flock(1) lacks is compared with what the manual of a later version says.

In the scripts ` + "`$H`" + ` is a helper of the test, ` + "`hold`" + ` takes the lock on f with flock(1), ` + "`held`" + ` says in which mode it is held,
` + "`waiting`" + ` returns once a process waits for it, and ` + "`echo $?`" + ` prints an exit status.

| | case | script | output | compared with |
|---|---|---|---|---|
`

// checkTable compares the table in docs with rows, or with -update writes it.
func checkTable(t *testing.T, rows []string) {
	text := tableHead + strings.Join(rows, "")
	if *update {
		if err := os.WriteFile(tableFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(tableFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != text {
		t.Errorf("%s is out of date: run go test -run TestLikeFlock -update", tableFile)
	}
}
