//go:build linux

package verify

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"encoding/binary"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// draw returns the plan of a round: the same for the same seed and round.
func draw(seed uint64, round int) plan {
	rng := rand.New(rand.NewPCG(seed, uint64(round)))
	pick := func(n int) bool { return rng.IntN(100) < n }
	p := plan{Seed: seed, Round: round,
		Files: 1 + rng.IntN(2), Procs: 2 + rng.IntN(3), Goroutines: 1 + rng.IntN(6),
		Millis:    400 + rng.IntN(600),
		SharedPct: []int{0, 20, 50, 80}[rng.IntN(4)],
		Hold:      []time.Duration{20 * time.Microsecond, 300 * time.Microsecond, 2 * time.Millisecond}[rng.IntN(3)],
	}
	p.Mechanisms = [][]flockctx.Mechanism{{flockctx.BSD}, {flockctx.OFD}, {flockctx.BSD, flockctx.OFD}}[rng.IntN(3)]
	p.Waits = [][]flockctx.Wait{
		{flockctx.WaitAuto}, {flockctx.WaitBlock}, {flockctx.WaitPoll},
		{flockctx.WaitAuto, flockctx.WaitBlock, flockctx.WaitPoll}}[rng.IntN(4)]
	p.Ranges = pick(40)
	p.Convert = pick(40)
	if pick(20) {
		p.Faults = append(p.Faults, "replace")
	} else {
		p.Remove = pick(20)
	}
	if p.Remove {
		// Whoever removes a file must have all of it to itself: a lock of the
		// other mechanism, or of a range, keeps nobody away.
		p.Mechanisms, p.Ranges = p.Mechanisms[:1], false
	}
	p.Borrow = !p.Remove && !p.moves() && pick(20)
	p.Fair = len(p.Mechanisms) == 1 && p.Mechanisms[0] == flockctx.BSD && pick(40)
	for _, f := range []string{"kill", "stop", "storm", "gc", "procs", "children", "emfile"} {
		if pick(25) {
			p.Faults = append(p.Faults, f)
		}
	}
	if *fairFlag {
		p.Mechanisms, p.Fair, p.Faults = []flockctx.Mechanism{flockctx.BSD}, true, []string{"kill", "stop"}
	}
	return p
}

func (p plan) String() string {
	return fmt.Sprintf("seed %d round %d: %d processes × %d goroutines, %d files, %v, wait %v, %d %% shared, ranges %v, convert %v, remove %v, fair %v, borrow %v, hold %v, faults %v",
		p.Seed, p.Round, p.Procs, p.Goroutines, p.Files, p.Mechanisms, p.Waits, p.SharedPct, p.Ranges, p.Convert, p.Remove, p.Fair, p.Borrow, p.Hold, p.Faults)
}

// A tally sums up what a stress run did.
type tally struct {
	Rounds, Ops, Locked, Ended, Busy, Converts int
	Episodes                                   int
	Kills, Stops, Signals, Moves               int
	Late                                       []time.Duration
	Checked                                    int // operations that porcupine placed
}

func (s *tally) String() string {
	slices.Sort(s.Late)
	q := func(x float64) time.Duration {
		if len(s.Late) == 0 {
			return 0
		}
		return s.Late[int(x*float64(len(s.Late)-1))].Round(time.Microsecond)
	}
	return fmt.Sprintf("%d rounds, %d attempts: %d granted, %d ended by ctx, %d refused at once, %d converts; %d steps placed by porcupine; "+
		"faults: %d kills, %d stops, %d signals, %d moves, %d episodes; return after the deadline: median %v, 99 %% %v, longest %v",
		s.Rounds, s.Ops, s.Locked, s.Ended, s.Busy, s.Converts, s.Checked, s.Kills, s.Stops, s.Signals, s.Moves, s.Episodes, q(.5), q(.99), q(1))
}

// TestStress runs rounds of processes that lock while faults befall them, and has
// each round's history checked. Its flags: -seconds, -seed, and -round to repeat
// one round.
func TestStress(t *testing.T) {
	var sum tally
	t.Logf("seed %d, %d seconds", *seedFlag, *secondsFlag)
	defer func() { t.Log(sum.String()) }()
	if *roundFlag >= 0 {
		for range 20 {
			if !stressRound(t, draw(*seedFlag, *roundFlag), &sum) {
				return
			}
		}
		return
	}
	end := time.Now().Add(time.Duration(*secondsFlag) * time.Second)
	for round := 0; time.Now().Before(end); round++ {
		if !stressRound(t, draw(*seedFlag, round), &sum) {
			return
		}
		// In between, what needs a scene of its own.
		if round%20 == 19 {
			e := episodes[rand.New(rand.NewPCG(*seedFlag, uint64(round)|1<<41)).IntN(len(episodes))]
			if !t.Run(e.name, e.run) {
				return
			}
			sum.Episodes++
		}
	}
}

// episodes are the tests of single faults, which a stress run repeats.
var episodes = []struct {
	name string
	run  func(*testing.T)
}{
	{"killed holder", TestLockOfAKilledHolderIsFreeAtOnce},
	{"killed waiter", TestKilledWaiterLeavesNothing},
	{"stopped holder", TestStoppedHolderKeepsTheLock},
	{"stopped waiter", TestStoppedWaiter},
	{"ctx ends at every point", TestContextEndsAtEveryPoint},
	{"canceled waiter", TestCanceledWaiterHandsOn},
	{"descriptors exhausted", TestDescriptorsExhausted},
	{"children", TestChildrenForkedAllTheTime},
	{"collector", TestCollectorForced},
}

func stressRound(t *testing.T, p plan, sum *tally) bool {
	bad := runRound(t, p, sum, "")
	sum.Rounds++
	if len(bad) == 0 {
		return true
	}
	if len(bad) > 12 {
		bad = append(bad[:12], fmt.Sprintf("and %d more", len(bad)-12))
	}
	t.Errorf("%v\nrepeat with: go test -run TestStress -seed %d -round %d\n%s", p, p.Seed, p.Round, strings.Join(bad, "\n"))
	return false
}

// A naming is a time when a path surely did not name a file any more.
type naming struct {
	id    string
	since int64
}

// runRound runs a round and returns what was wrong.
func runRound(t *testing.T, p plan, sum *tally, control string) (bad []string) {
	if p.Base == "" {
		p.Base = t.TempDir()
	}
	dir, err := os.MkdirTemp(p.Base, "round")
	if err != nil {
		t.Fatal(err)
	}
	p.Dir = dir
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range p.files() {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(p.Seed, uint64(p.Round)|1<<40))
	first, kills := 0, 0
	deaths := map[int]death{}
	var histories []string
	spawn := func() (*helper, workerConfig) {
		c := workerConfig{Plan: p, First: first, Stream: uint64(first), Control: control,
			History: filepath.Join(dir, fmt.Sprintf("history%d", first))}
		histories = append(histories, c.History)
		first += p.Goroutines
		return startHelper(t, nil, "worker", c), c
	}
	workers := make([]*helper, p.Procs)
	configs := make([]workerConfig, p.Procs)
	for i := range workers {
		workers[i], configs[i] = spawn()
	}
	for _, w := range workers {
		w.expect(t, "ready")
	}
	for _, w := range workers {
		w.say("go")
	}

	var dead []naming
	end := time.Now().Add(time.Duration(p.Millis) * time.Millisecond)
	for time.Now().Before(end) {
		pause := time.Duration(500+rng.IntN(4000)) * time.Microsecond
		i := rng.IntN(len(workers))
		pid := workers[i].pid()
		acts := slices.DeleteFunc(slices.Clone(p.Faults), func(f string) bool {
			return f != "kill" && f != "stop" && f != "storm" && f != "replace"
		})
		act := ""
		if len(acts) > 0 {
			act = acts[rng.IntN(len(acts))]
		}
		switch act {
		case "kill":
			time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
			workers[i].kill()
			kills++
			reaped := workers[i].end
			if p.has("children") {
				// A child that was forked and has not called execve yet
				// keeps the lock until it does.
				reaped += int64(500 * time.Millisecond)
			}
			for g := range p.Goroutines {
				deaths[configs[i].First+g] = death{reaped}
			}
			workers[i], configs[i] = spawn()
			workers[i].expect(t, "ready")
			workers[i].say("go")
			sum.Kills++
		case "stop":
			unix.Kill(pid, unix.SIGSTOP)
			time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
			unix.Kill(pid, unix.SIGCONT)
			sum.Stops++
		case "storm":
			sum.Signals += storm(pid, rng, 200)
		case "replace":
			dead = append(dead, p.move(t, rng)...)
			sum.Moves++
		}
		time.Sleep(pause)
	}

	for _, w := range workers {
		w.say("stop")
	}
	for i, w := range workers {
		line := w.hear(t)
		var r workerReport
		if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "idle ")), &r); err != nil {
			t.Fatalf("worker says %q: %v", line, err)
		}
		for _, b := range r.Bad {
			bad = append(bad, fmt.Sprintf("worker %d: %s", i, b))
		}
	}
	bad = append(bad, nothingHeld(p)...)
	for _, w := range workers {
		w.say("exit")
		<-w.gone
		if w.err != nil {
			bad = append(bad, fmt.Sprintf("worker: %v\n%s", w.err, w.stderr.String()))
		}
	}

	var es []event
	for _, h := range histories {
		more, err := readHistory(h)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		es = append(es, more...)
	}
	bad = append(bad, checkHistory(p, es, deaths, dead, kills, sum)...)
	if len(bad) == 0 {
		os.RemoveAll(dir)
	} else if keep := os.Getenv("FLOCKCTX_VERIFY_KEEP"); keep != "" {
		os.CopyFS(filepath.Join(keep, fmt.Sprintf("%d-%d", p.Seed, p.Round)), os.DirFS(dir))
	}
	return bad
}

// checkHistory checks the history of a round, and that the counters agree with it.
func checkHistory(p plan, es []event, deaths map[int]death, dead []naming, kills int, sum *tally) (bad []string) {
	for _, e := range es {
		if !e.Return {
			continue
		}
		switch {
		case e.Op == "convert":
			sum.Converts++
		case e.Op == "unlock":
		case e.Result == "ok":
			sum.Ops, sum.Locked = sum.Ops+1, sum.Locked+1
		case e.Result == "ended":
			sum.Ops, sum.Ended = sum.Ops+1, sum.Ended+1
		case e.Result == "busy":
			sum.Ops, sum.Busy = sum.Ops+1, sum.Busy+1
		default:
			sum.Ops++
		}
	}
	parts, bad := parse(es, p.moves(), deaths)
	for name, part := range parts {
		if p.moves() {
			part.busy = nil // which file a try failed on is not known
		}
		for _, w := range part.check() {
			bad = append(bad, name+": "+w)
		}
		sum.Checked += len(part.ops)
		sum.Late = append(sum.Late, part.late...)
		for _, late := range part.late {
			if late > 5*time.Second {
				bad = append(bad, fmt.Sprintf("%s: ended %v after the deadline", name, late))
			}
		}
	}
	// A grant must be on a file that the path named at some time of the call.
	since := map[string]int64{}
	for _, n := range dead {
		since[n.id] = n.since
	}
	calls := map[[2]int]int64{}
	for _, e := range es {
		if !e.Return {
			calls[[2]int{e.Client, e.N}] = e.At
		} else if at, ok := since[e.ID]; ok && e.ID != "" && e.Op != "unlock" && e.Op != "convert" && e.Result == "ok" && calls[[2]int{e.Client, e.N}] > at {
			bad = append(bad, fmt.Sprintf("client %d: locked a file that %s did not name since %v before the call", e.Client, e.File,
				time.Duration(calls[[2]int{e.Client, e.N}]-at)))
		}
	}
	// No lost update.
	if p.moves() || p.Remove {
		return bad
	}
	for i, path := range p.files() {
		data, _ := os.ReadFile(path)
		for _, mech := range p.Mechanisms {
			total := 0
			for seg := range segments {
				if at := seg*segmentBytes + int(mech)*16; at+8 <= len(data) {
					total += int(binary.LittleEndian.Uint64(data[at:]))
				}
			}
			incs := 0
			if part := parts[fmt.Sprintf("f%d %v", i, mech)]; part != nil {
				incs = part.incs
			}
			// Who was killed may have raised counters without saying so.
			if slack := kills * p.Goroutines * segments * 2; total < incs || total > incs+slack {
				bad = append(bad, fmt.Sprintf("%s, %v: counters say %d, histories %d", path, mech, total, incs))
			}
		}
	}
	return bad
}

// nothingHeld checks that with all workers idle every lock is free for another
// process, and that the kernel knows of no lock on the files.
func nothingHeld(p plan) (bad []string) {
	inodes := map[string]string{}
	filepath.Walk(p.Dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			st := info.Sys().(*syscall.Stat_t)
			inodes[fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)] = path
		}
		return nil
	})
	locks, _ := os.ReadFile("/proc/locks")
	for _, line := range strings.Split(string(locks), "\n") {
		for _, field := range strings.Fields(line) {
			if path := inodes[field]; path != "" {
				bad = append(bad, fmt.Sprintf("still locked: %s: %s", path, line))
			}
		}
	}
	for _, path := range p.files() {
		for _, mech := range p.Mechanisms {
			l, err := flockctx.TryLock(path, &flockctx.Options{Mechanism: mech})
			if err != nil {
				if p.moves() && os.IsNotExist(err) {
					continue
				}
				bad = append(bad, fmt.Sprintf("with all workers idle: %v", err))
				continue
			}
			l.Close()
		}
	}
	return bad
}

// storm sends signals to the process and to its threads: those that Go uses, those
// of a parent, and all that the library may use for itself.
func storm(pid int, rng *rand.Rand, n int) int {
	signals := []unix.Signal{unix.SIGURG, unix.SIGPROF, unix.SIGCHLD, unix.SIGWINCH}
	for s := unix.Signal(35); s <= 64; s++ {
		signals = append(signals, s)
	}
	signals = append(signals, 64, 64, 64, unix.SIGURG, unix.SIGURG)
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for range n {
		s := signals[rng.IntN(len(signals))]
		if len(tasks) == 0 || rng.IntN(4) == 0 {
			unix.Kill(pid, s)
			continue
		}
		var tid int
		fmt.Sscan(tasks[rng.IntN(len(tasks))].Name(), &tid)
		unix.Tgkill(pid, tid, s)
	}
	return n
}

// move has a path name another file, or none, and says which files have lost
// their names since when.
func (p plan) move(t testing.TB, rng *rand.Rand) (dead []naming) {
	paths := p.files()
	path := paths[rng.IntN(len(paths))]
	sub := filepath.Dir(path)
	identify := func(path string) string {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
		if err != nil {
			return ""
		}
		return fmt.Sprintf("%x", h.Bytes())
	}
	switch rng.IntN(4) {
	case 0:
		id := identify(path)
		if err := os.Remove(path); err == nil {
			dead = append(dead, naming{id, monotonic()})
		}
	case 1:
		fresh := filepath.Join(p.Dir, "fresh")
		os.WriteFile(fresh, nil, 0o600)
		// Without a file there one may be created between the two calls,
		// which then is not known to be dead.
		id := identify(path)
		if err := os.Rename(fresh, path); err == nil {
			dead = append(dead, naming{id, monotonic()})
		}
	case 2:
		id := identify(path)
		if err := os.Rename(path, filepath.Join(p.Dir, "aside")); err == nil {
			dead = append(dead, naming{id, monotonic()})
		}
	default:
		aside := filepath.Join(p.Dir, fmt.Sprintf("dir%d", rng.Uint64()))
		ids := []string{}
		for _, p := range paths {
			ids = append(ids, identify(p))
		}
		if err := os.Rename(sub, aside); err == nil {
			for _, id := range ids {
				dead = append(dead, naming{id, monotonic()})
			}
			os.Mkdir(sub, 0o700)
			os.RemoveAll(aside)
		}
	}
	return dead
}
