// Contract checks, between two processes, what flockctx promises about one folder.
// It is for environments that a test binary of this project does not reach by
// itself: two clients of a file server, two sandboxes, another processor. It uses the
// public API alone.
//
//	contract [flags] FOLDER                   runs the checks, with a peer that it starts
//	contract wait PATH [auto|block|poll] [TIMEOUT]  waits for a lock and says how that ended
//	contract hold PATH [SECONDS]              holds a lock and says what became of it
//	contract many FOLDER N                    N goroutines wait for as many locks of a peer
//	contract beside FOLDER PATH               locks PATH while 40 goroutines lock files in FOLDER
//
// It prints one line for each check: "ok", "FAIL", "known" (it fails, and was said to
// with -known) or "none" (the environment has no such thing), and ends with status 1
// if a check failed, with 3 if one hung.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"time"
)

var (
	peerCommand = flag.String("peer", "", "command that starts this program as the peer: at another client, say (default: this program)")
	peerFolder  = flag.String("peerdir", "", "the folder's name there (default: FOLDER)")
	only        = flag.String("run", "", "a regular expression: run the checks that match")
	skip        = flag.String("skip", "", "a regular expression: leave out the checks that match")
	known       = flag.String("known", "", "names of checks that are known to fail here, separated by commas")
	slack       = flag.Duration("slack", 3*time.Second, "how much later than its deadline a wait may return")
	hung        = flag.Duration("hang", time.Minute, "a check that takes longer hangs")
	stacks      = flag.Bool("stacks", false, "print the stacks of all goroutines when a check hangs")
	profile     = flag.Bool("profile", false, "have a CPU profile running")
	denied      = flag.String("deny", "", "system calls that are denied from then on: CALL,…=EPERM, ENOSYS or trap (Linux)")
	serving     = flag.Bool("serve", false, "be the peer")
)

func main() {
	flag.Parse()
	if *denied != "" {
		if err := deny(*denied); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(77)
		}
	}
	if *profile {
		if err := pprof.StartCPUProfile(io.Discard); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		defer pprof.StopCPUProfile()
	}
	switch {
	case *serving && flag.NArg() == 0:
		serve()
	case flag.Arg(0) == "wait" && flag.NArg() >= 2:
		os.Exit(wait(flag.Args()[1:]))
	case flag.Arg(0) == "hold" && flag.NArg() >= 2:
		os.Exit(hold(flag.Args()[1:]))
	case flag.Arg(0) == "many" && flag.NArg() == 3:
		os.Exit(many(flag.Arg(1), flag.Arg(2)))
	case flag.Arg(0) == "beside" && flag.NArg() == 3:
		os.Exit(beside(flag.Arg(1), flag.Arg(2)))
	case flag.NArg() == 1:
		os.Exit(runChecks(flag.Arg(0)))
	default:
		flag.Usage()
		os.Exit(2)
	}
}

// A pair is this process and its peer, for one check.
type pair struct {
	*peer
	dir, there string // the folder of the check, here and at the peer
	path       string // of its file, here

	mu       sync.Mutex
	verdict  string
	text     string
	cleanups []func()
}

// end ends the check, from its own goroutine.
func (p *pair) end(verdict, format string, args ...any) {
	p.mu.Lock()
	p.verdict, p.text = verdict, fmt.Sprintf(format, args...)
	p.mu.Unlock()
	runtime.Goexit()
}

func (p *pair) failf(format string, args ...any) { p.end("FAIL", format, args...) }
func (p *pair) none(format string, args ...any)  { p.end("none", format, args...) }
func (p *pair) cleanup(f func())                 { p.cleanups = append(p.cleanups, f) }

func runChecks(dir string) int {
	expected := map[string]bool{}
	for name := range strings.SplitSeq(*known, ",") {
		expected[name] = true
	}
	match, err := regexp.Compile(*only)
	without, werr := regexp.Compile(cmp.Or(*skip, "^$"))
	if err := errors.Join(err, werr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	there := *peerFolder
	if there == "" {
		there = dir
	}
	// A name of its own each time: a client of a file server remembers names for
	// seconds after they are gone.
	run := fmt.Sprintf("contract-%d-%d", os.Getpid(), time.Now().UnixNano())
	if err := os.Mkdir(dir+"/"+run, 0o777); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	defer os.RemoveAll(dir + "/" + run)
	defer endPeer()

	status, counts := 0, map[string]int{}
	for _, c := range checks {
		if !match.MatchString(c.name) || without.MatchString(c.name) {
			continue
		}
		folder := run + "/" + strings.ReplaceAll(c.name, "/", "-")
		start := time.Now()
		verdict, text := runCheck(c, dir+"/"+folder, there+"/"+folder)
		switch {
		case (verdict == "FAIL" || verdict == "HANG") && expected[c.name]:
			verdict = "known"
		case verdict == "ok" && expected[c.name]:
			text = "was known to fail"
		case verdict == "FAIL":
			status = max(status, 1)
		case verdict == "HANG":
			status = 3
		}
		counts[verdict]++
		fmt.Printf("%-5s %-24s %5.1f s  %s\n", verdict, c.name, time.Since(start).Seconds(), text)
	}
	fmt.Printf("contract: %d ok, %d failed, %d hung, %d known, %d none\n",
		counts["ok"], counts["FAIL"], counts["HANG"], counts["known"], counts["none"])
	return status
}

// runCheck runs one check in a goroutine of its own, and gives up on one that hangs.
func runCheck(c check, dir, there string) (verdict, text string) {
	before := descriptors()
	if err := os.Mkdir(dir, 0o777); err != nil {
		return "FAIL", err.Error()
	}
	peer, err := startPeer()
	if err != nil {
		return "FAIL", "the peer: " + err.Error()
	}
	if before < descriptors() {
		before = descriptors() // it had to be started
	}
	p := &pair{peer: peer, dir: dir, there: there, path: dir + "/lock"}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, f := range p.cleanups {
				f()
			}
		}()
		c.run(p)
		p.verdict = "ok"
	}()
	select {
	case <-done:
	case <-time.After(*hung):
		if *stacks {
			text := make([]byte, 1<<20)
			fmt.Printf("%s\n", text[:runtime.Stack(text, true)])
		}
		endPeer()
		return "HANG", "nothing after " + hung.String()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verdict != "ok" {
		endPeer() // it may be in the middle of something
		return p.verdict, p.text
	}
	if err := p.do(order{Do: "closeall"}); err != nil {
		return "FAIL", "the peer: " + err.Error()
	}
	if n := descriptors(); n > before {
		return "FAIL", fmt.Sprintf("%d descriptors left behind", n-before)
	}
	return p.verdict, p.text
}

// descriptors counts those that are open, where /proc tells.
func descriptors() int {
	if runtime.GOOS != "linux" {
		return 0
	}
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(names)
}
