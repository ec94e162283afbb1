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
	waitersScenario,
}

// A bench is one run.
type bench struct {
	*record
	quick bool
	smoke bool
	only  []string // candidates; nil: all
	dir   string   // on a disk
	shm   string   // on tmpfs, or ""
	bareC string   // the compiled bare.c, or ""
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
	out := flag.String("out", "", "write README.md and data.json into this `directory`")
	again := flag.String("rewrite", "", "measure nothing: write README.md in this `directory` anew from its data.json")
	note := flag.String("note", "", "a `remark` for the report, such as what else the machine does")
	dir := flag.String("dir", "", "lock files below this `directory`; default: a temporary one on a disk")
	flag.Parse()
	if *again != "" {
		if err := rewrite(*again); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if err := measure(*pick, *only, *quick || *smoke, *smoke, *dir, *out, *note); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func measure(pick, only string, quick, smoke bool, dir, out, note string) error {
	b := &bench{record: newRecord(), quick: quick, smoke: smoke}
	if note != "" {
		b.note("%s", note)
	}
	if only != "" {
		b.only = strings.Split(only, ",")
	}
	var err error
	if out != "" { // before the time is spent
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
	b.compile()
	for _, s := range scenarios {
		if pick != "" && !slices.Contains(strings.Split(pick, ","), s.name) {
			continue
		}
		start := time.Now()
		fmt.Fprintf(os.Stderr, "%s …", s.name)
		if err := s.run(b); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Fprintf(os.Stderr, " %.0f s\n", time.Since(start).Seconds())
		b.Scenarios = append(b.Scenarios, s.name)
	}
	b.Finished, b.Load = time.Now(), load()
	if out != "" {
		return b.save(out)
	}
	return b.write(os.Stdout, false)
}

// compile builds the candidate in C, if there is a compiler.
func (b *bench) compile() {
	src, bin := filepath.Join(b.dir, "bare.c"), filepath.Join(b.dir, "bare")
	if err := os.WriteFile(src, bareSource, 0o600); err != nil {
		b.note("no %s: %v", bareC, err)
		return
	}
	for _, cc := range []string{"cc", "gcc", "clang"} {
		if _, err := exec.LookPath(cc); err != nil {
			continue
		}
		if text, err := exec.Command(cc, "-O2", "-o", bin, src).CombinedOutput(); err != nil {
			b.note("no %s: %s: %v: %s", bareC, cc, err, text)
			return
		}
		b.bareC = bin
		return
	}
	b.note("no %s: no C compiler", bareC)
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
