//go:build linux

// Command bench measures flockctx beside its peers and the bare system calls: all on
// the same work, interleaved in one run, as ratios. See README.md.
package main

import (
	"cmp"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed c/bare.c
var bareSource []byte

// A scenario is one kind of work.
type scenario struct {
	name  string
	title string
	about string // what it is good for, and where a peer wins
	run   func(*bench) error
}

var scenarios = []scenario{
	uncontendedScenario,
	handoverScenario,
	processesScenario,
	cancelScenario,
	goroutinesScenario,
	foreignScenario,
	readwriteScenario,
	fairScenario,
	waitersScenario,
	slotsScenario,
}

// A bench is one run.
type bench struct {
	*record // of the scenario that is measured now
	quick   bool
	smoke   bool
	only    []string // candidates; nil: all
	dir     string   // on a disk
	shm     string   // on tmpfs, or ""
	bareC   string   // the compiled bare.c, or ""
}

func main() {
	if text := os.Getenv(jobVariable); text != "" {
		if err := runJob(text); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	names := make([]string, len(scenarios))
	for i, s := range scenarios {
		names[i] = s.name
	}
	pick := flag.String("run", "", "scenarios, separated by commas: "+strings.Join(names, ", ")+"; default all")
	only := flag.String("only", "", "candidates, separated by commas, besides flockctx; default all")
	quick := flag.Bool("quick", false, "measure for shorter, and fewer candidates")
	smoke := flag.Bool("smoke", false, "run everything once, for so short that the figures mean nothing")
	out := flag.String("out", "", "write the report into this `directory`, from its records and those of this run, which take the place of older ones of the same scenarios")
	again := flag.String("rewrite", "", "measure nothing: write the report in this `directory` anew from its records")
	readme := flag.String("readme", "", "put the summary also into this `file`, between its marks")
	note := flag.String("note", "", "a `remark` for the report, such as what else the machine does")
	dir := flag.String("dir", "", "lock files below this `directory`; default: a temporary one on a disk")
	flag.Parse()
	err := func() error {
		if *again == "" {
			b := &bench{quick: *quick || *smoke, smoke: *smoke}
			if *only != "" {
				b.only = strings.Split(*only, ",")
			}
			var picked []string
			if *pick != "" {
				picked = strings.Split(*pick, ",")
			}
			if err := b.measure(picked, *dir, *out, *note); err != nil {
				return err
			}
		}
		if *again == "" && *out == "" {
			return nil
		}
		return publish(cmp.Or(*again, *out), *readme)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// publish makes the report of the records in dir.
func publish(dir, readme string) error {
	r, err := loadReport(dir)
	if err != nil {
		return err
	}
	if err := r.write(dir); err != nil {
		return err
	}
	if readme != "" {
		return r.quote(readme)
	}
	return nil
}

// measure runs the scenarios that are picked, or all, and saves a record of each in out,
// or prints it.
func (b *bench) measure(picked []string, dir, out, note string) error {
	for _, name := range picked { // before the time is spent
		if !slices.ContainsFunc(scenarios, func(s scenario) bool { return s.name == name }) {
			return fmt.Errorf("no scenario %q", name)
		}
	}
	var err error
	if out != "" {
		if err := os.MkdirAll(out, 0o755); err != nil {
			return err
		}
	}
	if b.dir, err = os.MkdirTemp(cmp.Or(dir, diskDir()), "flockctx-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if fileSystem("/dev/shm") == "tmpfs" {
		if b.shm, err = os.MkdirTemp("/dev/shm", "flockctx-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(b.shm)
	}
	missing := b.compile()
	for _, s := range scenarios {
		if picked != nil && !slices.Contains(picked, s.name) {
			continue
		}
		b.record = newRecord(s.name, b.quick)
		for _, text := range []string{note, missing} {
			if text != "" {
				b.note("%s", text)
			}
		}
		start, before := time.Now(), readProcessors()
		fmt.Fprintf(os.Stderr, "%s …", s.name)
		if err := s.run(b); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Fprintf(os.Stderr, " %.0f s\n", time.Since(start).Seconds())
		after := readProcessors()
		b.Stolen = digits(float64(after.stolen-before.stolen)/float64(max(after.all-before.all, 1)), 3)
		b.Finished, b.LoadAfter = time.Now().UTC().Truncate(time.Second), load()
		if out == "" {
			fmt.Print(report{s.name: b.record}.scenarioPage(s))
		} else if err := b.save(out); err != nil {
			return err
		}
	}
	return nil
}

// compile builds the candidate in C, and says why it could not.
func (b *bench) compile() string {
	src, bin := filepath.Join(b.dir, "bare.c"), filepath.Join(b.dir, "bare")
	if err := os.WriteFile(src, bareSource, 0o600); err != nil {
		return fmt.Sprintf("left out: %s: %v", bareC, err)
	}
	for _, cc := range []string{"cc", "gcc", "clang"} {
		if _, err := exec.LookPath(cc); err != nil {
			continue
		}
		if text, err := exec.Command(cc, "-O2", "-o", bin, src).CombinedOutput(); err != nil {
			return fmt.Sprintf("left out: %s: %s: %v: %s", bareC, cc, err, text)
		}
		b.bareC = bin
		return ""
	}
	return fmt.Sprintf("left out: %s: no C compiler", bareC)
}

// wants returns those of the candidates with these names that are to be measured.
func (b *bench) wants(names ...string) (r []*candidate) {
	for _, n := range names {
		c := find(n)
		if n == bareC && b.bareC == "" {
			continue
		}
		if b.only != nil && !strings.HasPrefix(n, ours) && !slices.Contains(b.only, n) {
			continue
		}
		r = append(r, c)
	}
	return r
}

// rounds calls fn for every candidate in every round: in one order and then in the
// other, so that what changes slowly on the machine hits all alike.
func (b *bench) rounds(n int, cands []*candidate, fn func(*candidate) error) error {
	order := slices.Clone(cands)
	for range n {
		for _, c := range order {
			if err := fn(c); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
		slices.Reverse(order)
	}
	return nil
}

// pick returns full, quick or smoke, as the run is.
func pick[T any](b *bench, full, quick, smoke T) T {
	switch {
	case b.smoke:
		return smoke
	case b.quick:
		return quick
	}
	return full
}

// diskDir returns a directory for files that is not on tmpfs, if it finds one.
func diskDir() string {
	wd, _ := os.Getwd()
	for _, d := range []string{os.TempDir(), "/var/tmp", wd} {
		if fs := fileSystem(d); fs != "" && fs != "tmpfs" {
			return d
		}
	}
	return os.TempDir()
}

var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC:      "ext4",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay",
}

// fileSystem names the file system of dir, or returns "" where dir is not there.
func fileSystem(dir string) string {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return ""
	}
	if name := fileSystems[int64(st.Type)]; name != "" {
		return name
	}
	return fmt.Sprintf("file system %#x", st.Type)
}
