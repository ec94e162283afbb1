package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/spf13/pflag"
)

const help = `
Usage:
 flockctx [options] <file>|<directory> <command> [<argument>...]
 flockctx [options] <file>|<directory> -c <command>
 flockctx [options] <file descriptor number>
 flockctx [options] --fd <number> <command> [<argument>...]
 flockctx [options] --fd <number> -c <command>
 flockctx --list [--json] [<file>...]
 flockctx --probe <directory>

Run a command while holding a lock, as flock(1) does, and see who holds locks.

Options:
 -s, --shared             get a shared lock
 -x, -e, --exclusive      get an exclusive lock (default)
 -u, --unlock             remove a lock
 -n, --nonblock           fail rather than wait
 -w, --wait, --timeout <secs>  wait for a limited amount of time
 -E, --conflict-exit-code <number>  exit status after conflict or timeout
 -o, --close              close file descriptor before running command
 -c, --command <command>  run a single command string through the shell
 -F, --no-fork            execute command without forking
     --fd <number>        lock an inherited file descriptor
     --fcntl              use fcntl(F_OFD_SETLK) rather than flock()
     --start <offset>     starting offset for lock (implies --fcntl)
     --length <number>    number of bytes to lock (implies --fcntl)
     --also <file>        lock this file too, all or none; may be repeated
     --slots <number>     let so many in at a time; the command gets FLOCKCTX_SLOT
     --remove             remove the lock file at the end
     --verbose            say how long it took, and who is in the way
     --quiet              no line on the terminal about who is in the way

     --list               list holders and waiters, of all files or of these
     --json               with --list: as JSON
     --probe              find out whether locks work in a directory

 -h, --help               display this help
 -V, --version            display version

For more details see flockctx(1).
`

// options are what the command line says.
type options struct {
	mode          flockctx.Mode
	unlock        bool
	nonblock      bool
	timeout       timeout
	conflict      int // exit status
	close, noFork bool
	fcntl         bool
	start, length int64
	fd            int // -1: none
	also          []string
	slots         int // 0: a lock
	remove        bool
	verbose       bool
	quiet         bool

	list, json, probe, agent bool

	inherited bool // by --fd

	named   bool // path is given, and not a descriptor
	path    string
	shell   []string // from -c before the operands
	command []string // nil: none
	args    []string // operands of the last group
}

// A timeout is how long -w waits.
type timeout struct {
	set     bool
	invalid bool // flock(1) finds that out only when it sets its timer
	d       time.Duration
}

// usageError is a command line that is not understood.
type usageError struct {
	text string
	hint bool
}

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{text: fmt.Sprintf(format, args...)}
}

var errHelp, errVersion = errors.New("help"), errors.New("version")

// An option is one of the command line.
type option struct {
	names string // long ones; the first is shown
	short string
	arg   bool
	set   func(string) error
	since int // which flock(1) has it, for abbreviations
}

const (
	always = iota // flock(1) 2.38
	later         // 2.41 to 2.43
	ours
)

// value makes an option a pflag.Value.
type value struct {
	name string
	set  func(string) error
	arg  bool
	err  *error // the first error of any option
}

// present is what pflag calls Set with for an option without an argument. A
// command line cannot contain it.
const present = "\x00"

func (v *value) String() string { return "" }
func (v *value) Type() string   { return "" }
func (v *value) Set(s string) error {
	err := error(&usageError{text: fmt.Sprintf("option '--%s' doesn't allow an argument", v.name), hint: true})
	if v.arg || s == present {
		err = v.set(s)
	}
	if err != nil && *v.err == nil {
		*v.err = err
	}
	return err
}

func parse(args []string) (*options, error) {
	o := &options{conflict: 1, fd: -1}
	if len(args) == 0 {
		return nil, &usageError{"not enough arguments", true}
	}
	flag := func(p *bool) func(string) error {
		return func(string) error { *p = true; return nil }
	}
	fail := func(err error) func(string) error {
		return func(string) error { return err }
	}
	mode := func(m flockctx.Mode, unlock bool) func(string) error {
		return func(string) error { o.mode, o.unlock = m, unlock; return nil }
	}
	all := []option{
		{"shared", "s", false, mode(flockctx.Shared, false), always},
		{"exclusive", "x", false, mode(flockctx.Exclusive, false), always},
		{"e", "e", false, mode(flockctx.Exclusive, false), always},
		{"unlock", "u", false, mode(flockctx.Exclusive, true), always},
		{"nonblocking nb nonblock", "n", false, flag(&o.nonblock), always},
		{"timeout wait", "w", true, func(s string) (err error) { o.timeout, err = parseTimeout(s); return err }, always},
		{"conflict-exit-code", "E", true, func(s string) (err error) { o.conflict, err = parseStatus(s); return err }, always},
		{"close", "o", false, flag(&o.close), always},
		{"no-fork", "F", false, flag(&o.noFork), always},
		{"verbose", "", false, flag(&o.verbose), always},
		{"help", "h", false, fail(errHelp), always},
		{"version", "V", false, fail(errVersion), always},
		{"fcntl", "", false, flag(&o.fcntl), later},
		{"start", "", true, func(s string) (err error) {
			o.fcntl = true
			o.start, err = parseSize(s, "invalid start offset")
			return err
		}, later},
		{"length", "", true, func(s string) (err error) {
			o.fcntl = true
			o.length, err = parseSize(s, "invalid length of lock range")
			return err
		}, later},
		{"command", "c", true, func(s string) error { o.shell = append(o.shell, s); return nil }, later},
		{"fd", "", true, func(s string) (err error) {
			if o.fd, err = parseFD(s); err == nil && o.fd == noFD {
				err = usagef("bad file descriptor: '%s'", s)
			}
			return err
		}, later},
		{"also", "", true, func(s string) error { o.also = append(o.also, s); return nil }, ours},
		{"slots", "", true, func(s string) (err error) { o.slots, err = parseSlots(s); return err }, ours},
		{"remove", "", false, flag(&o.remove), ours},
		{"quiet", "", false, flag(&o.quiet), ours},
		{"list", "", false, flag(&o.list), ours},
		{"json", "", false, flag(&o.json), ours},
		{"probe", "", false, flag(&o.probe), ours},
		{agentOption, "", false, flag(&o.agent), ours},
	}
	var first error
	fs := pflag.NewFlagSet("flockctx", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SetInterspersed(false)
	for _, op := range all {
		for i, name := range strings.Fields(op.names) {
			short := op.short
			if i > 0 {
				short = ""
			}
			f := fs.VarPF(&value{name, op.set, op.arg, &first}, name, short, "")
			if !op.arg {
				f.NoOptDefVal = present
			}
		}
	}
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(unabbreviate(all, name))
	})
	if err := fs.Parse(args); err != nil {
		if first != nil {
			err = first
		} else {
			err = &usageError{err.Error(), true}
		}
		return nil, err
	}
	// pflag takes "-w=5" for "-w5". getopt(3) does not, nor does flock(1).
	for _, a := range args[:len(args)-fs.NArg()] {
		if a, short := strings.CutPrefix(a, "-"); short {
			a = strings.TrimLeft(a, "sexunoF")
			if len(a) > 1 && (a[0] == 'w' || a[0] == 'E') && a[1] == '=' {
				return nil, usagef("invalid number: '%s'", a[1:])
			}
		}
	}
	o.args = fs.Args()
	return o, o.check()
}

// unabbreviate returns the option that name, a long one, begins. What has a meaning
// for flock(1) keeps it, whatever options came later. Where several are meant it
// returns name, which then is no option.
func unabbreviate(all []option, name string) string {
	for _, since := range []int{always, later, ours} {
		found, several := "", false
		for _, op := range all {
			for _, n := range strings.Fields(op.names) {
				if n == name {
					return name
				}
			}
		}
		for _, op := range all {
			names := strings.Fields(op.names)
			if op.since != since || !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, name) }) {
				continue
			}
			several = several || found != ""
			found = names[0]
		}
		switch {
		case several:
			return name
		case found != "":
			return found
		}
	}
	return name
}

// check finds what is wrong with the options together, in the order of flock(1),
// and takes the operands apart.
func (o *options) check() error {
	switch groups := btoi(o.list) + btoi(o.probe) + btoi(o.agent); {
	case groups > 1:
		return usagef("the --list and --probe options are incompatible")
	case o.json && !o.list:
		return usagef("--json needs --list")
	case o.list:
		return nil
	case o.probe || o.agent:
		if len(o.args) != 1 {
			return usagef("--probe requires exactly one directory")
		}
		return nil
	}
	if o.noFork && o.close {
		return usagef("the --no-fork and --close options are incompatible")
	}
	if o.noFork && o.remove {
		return usagef("the --no-fork and --remove options are incompatible")
	}
	args := o.args
	if o.shell != nil {
		// With a file, the option comes after it.
		if o.fd < 0 {
			return &usageError{"-c needs --fd, or a file before it", true}
		}
		if len(o.shell) > 1 || len(args) > 0 {
			return usagef("-c requires exactly one command argument")
		}
		args = []string{"-c", o.shell[0]}
	}
	o.inherited = o.fd >= 0
	if !o.inherited {
		if len(args) == 0 {
			return usagef("requires file descriptor, file or directory")
		}
		if len(args) == 1 && o.slots == 0 {
			var err error
			o.fd, err = parseFD(args[0])
			if err != nil {
				return err
			}
		} else {
			o.named, o.path = true, args[0]
		}
		args = args[1:]
	}
	if !o.named && (o.remove || len(o.also) > 0) {
		return usagef("--also and --remove need a file, not a descriptor")
	}
	if len(o.also) > 0 && o.unlock {
		return usagef("the --also and --unlock options are incompatible")
	}
	if err := o.checkSlots(args); err != nil {
		return err
	}
	switch {
	case len(args) == 0:
		if o.inherited {
			return usagef("--fd requires a command")
		}
	case args[0] == "-c" || args[0] == "--command":
		if len(args) != 2 {
			return usagef("%s requires exactly one command argument", args[0])
		}
		o.command = []string{shell(), "-c", args[1]}
	default:
		o.command = args
	}
	return nil
}

// checkSlots finds what does not go with --slots; command are the operands behind the
// file.
func (o *options) checkSlots(command []string) error {
	other := ""
	switch {
	case o.slots == 0:
		return nil
	case !o.named || len(command) == 0:
		return usagef("--slots needs a file and a command")
	case o.unlock:
		other = "unlock"
	case o.mode == flockctx.Shared:
		other = "shared"
	case len(o.also) > 0:
		other = "also"
	case o.remove:
		other = "remove"
	case o.start != 0 || o.length != 0:
		return usagef("--slots takes no range of bytes")
	default:
		return nil
	}
	return usagef("the --slots and --%s options are incompatible", other)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// parseTimeout parses seconds as strtold(3) does.
func parseTimeout(s string) (timeout, error) {
	t := strings.TrimLeft(s, " \t\n\v\f\r")
	lower := strings.ToLower(t)
	if strings.Contains(lower, "0x") && !strings.Contains(lower, "p") {
		t += "p0"
	}
	v, err := strconv.ParseFloat(t, 64)
	if errors.Is(err, strconv.ErrRange) {
		err = nil
	}
	if err != nil || strings.Contains(t, "_") {
		return timeout{}, usagef("invalid timeout value: '%s'", s)
	}
	// As a struct timeval has it: what is less than 1 µs is 0.
	micro := math.Trunc(v * 1e6)
	switch {
	case micro < 0 || math.IsNaN(v) || v >= math.MaxInt64:
		return timeout{set: true, invalid: true}, nil
	case micro >= math.MaxInt64/1000:
		return timeout{set: true, d: math.MaxInt64}, nil
	}
	return timeout{set: true, d: time.Duration(micro) * time.Microsecond}, nil
}

func parseStatus(s string) (int, error) {
	n, err := parseInt32(s)
	if err != nil {
		return 0, usagef("invalid exit code: '%s'", s)
	}
	if n < 0 || n > 255 {
		return 0, usagef("exit code out of range (expected 0 to 255)")
	}
	return n, nil
}

func parseSlots(s string) (int, error) {
	n, err := parseInt32(s)
	if err != nil || n < 1 || n > 1<<30 {
		return 0, usagef("invalid number of slots: '%s'", s)
	}
	return n, nil
}

// noFD is a number that is no descriptor's, for what is none.
const noFD = math.MaxInt32

func parseFD(s string) (int, error) {
	n, err := parseInt32(s)
	if err != nil {
		return 0, usagef("bad file descriptor: '%s'", s)
	}
	if n < 0 {
		n = noFD
	}
	return n, nil
}

// parseInt32 parses a number as strtol(3) does.
func parseInt32(s string) (int, error) {
	n, err := strconv.ParseInt(strings.TrimLeft(s, " \t\n\v\f\r"), 10, 32)
	return int(n), err
}

// parseSize parses a number of bytes as flock(1) does: 100, 4K, 4KiB (4096), 4KB
// (4000), 1.5M; and as strtoumax(3) does, in hexadecimal (0x1000) and octal (010).
func parseSize(s, text string) (int64, error) {
	failed := usagef("%s: '%s'", text, s)
	t := strings.TrimPrefix(strings.TrimLeft(s, " \t\n\v\f\r"), "+")
	base, digits := 10, "0123456789"
	if len(t) > 2 && (t[:2] == "0x" || t[:2] == "0X") && strings.ContainsRune(hexDigits, rune(t[2])) {
		t, base, digits = t[2:], 16, hexDigits
	} else if len(t) > 1 && t[0] == '0' {
		base, digits = 8, "01234567"
	}
	rest := strings.TrimLeft(t, digits)
	whole, err := strconv.ParseInt(t[:len(t)-len(rest)], base, 64)
	if err != nil {
		return 0, failed
	}
	fraction := 0.0
	if strings.HasPrefix(rest, ".") {
		suffix := strings.TrimLeft(rest[1:], "0123456789")
		number := rest[:len(rest)-len(suffix)]
		if fraction, err = strconv.ParseFloat("0"+number+"0", 64); err != nil || suffix == "" {
			return 0, failed
		}
		rest = suffix
	}
	factor := int64(1)
	if suffix := strings.ToUpper(rest); suffix != "" {
		power := strings.IndexByte("KMGTPE", suffix[0]) + 1
		unit := int64(1024)
		switch rest := suffix[1:]; {
		case power == 0:
			return 0, failed
		case rest == "B":
			unit = 1000
		case rest != "" && rest != "IB":
			return 0, failed
		}
		for range power {
			factor *= unit
		}
	}
	if whole > math.MaxInt64/factor {
		return 0, failed
	}
	n := whole*factor + int64(fraction*float64(factor))
	if n < 0 {
		return 0, failed
	}
	return n, nil
}

const hexDigits = "0123456789abcdefABCDEF"

// agentOption makes flockctx the second process of --probe.
const agentOption = "_agent"
