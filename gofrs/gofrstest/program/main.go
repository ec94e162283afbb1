// Program calls file locks at random, and prints what they answer. It is written for
// gofrs/flock; the test runs it so, with the import of flockctx's package, and as go fix
// makes it of that, and the output must be the same.
//
// It stays away from what docs/migrating.md lists as different, as a program must that
// wants to be carried over: what converts a lock is followed by Unlock, one goroutine
// uses a handle, and a file is removed only where nobody holds its lock.
package main

import (
	"bufio"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"

	"github.com/flockctx/flockctx/gofrs/gofrstest/program/store"
)

func main() {
	seed, err := strconv.ParseInt(os.Args[1], 10, 64)
	check(err)
	sequences, err := strconv.Atoi(os.Args[2])
	check(err)
	dir := os.Args[3]
	out := bufio.NewWriter(os.Stdout)
	for i := range sequences {
		fmt.Fprintf(out, "sequence %d\n", i)
		run(out, rand.New(rand.NewSource(seed+int64(i))), dir)
	}
	check(out.Flush())
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// A handle, as the program knows it.
type handle struct {
	key, path string
	mode      byte // 'x', 's', or 0: not locked
	converted bool // must be unlocked next
}

// calls are what is drawn from.
var calls = []string{
	"Lock", "RLock", "TryLock", "TryRLock", "TryLock", "TryRLock",
	"TryLockContext", "TryRLockContext", "TryLockContext ended", "TryRLockContext ended",
	"Unlock", "Close", "Unlock", "Close", "Stat", "names", "remove",
}

func run(out *bufio.Writer, r *rand.Rand, dir string) {
	s := store.Open()
	defer s.End()
	file, directory := filepath.Join(dir, "file"), filepath.Join(dir, "directory")
	check(os.MkdirAll(directory, 0o700))
	os.Remove(file)
	handles := []*handle{
		{key: "a", path: file}, {key: "b", path: file}, {key: "c", path: file},
		{key: "d", path: directory}, {key: "e", path: directory},
		{key: "f", path: filepath.Join(dir, "missing", "file")},
	}
	s.Add("a", file)
	s.Add("b", file, store.Writable, store.Open644)
	s.Add("c", file, store.ReadOnly)
	s.Add("d", directory, store.ReadOnly)
	s.Add("e", directory, store.ReadOnly)
	s.Add("f", handles[5].path)
	for range 5 + r.Intn(30) {
		h := handles[r.Intn(len(handles))]
		if r.Intn(3) > 0 { // mostly the file
			h = handles[r.Intn(3)]
		}
		call := calls[r.Intn(len(calls))]
		if h.converted {
			call = "Unlock"
		}
		if call == "remove" {
			if h.path == file && free(handles, file) {
				os.Remove(file)
			}
			continue
		}
		if call = possible(handles, h, call); call == "" {
			continue
		}
		answer := s.Call(h.key, call)
		note(h, call, answer)
		x, sh := s.Locked(h.key)
		if h.converted {
			x, sh = true, true
		}
		fmt.Fprintf(out, "%s %s: %s; %v %v\n", h.key, call, answer, x, sh)
	}
	for _, h := range handles {
		fmt.Fprintf(out, "%s released: %v\n", h.key, s.Release(h.key))
	}
}

// wants returns the mode in which call would lock, or 0.
func wants(call string) byte {
	switch call {
	case "Lock", "TryLock", "TryLockContext":
		return 'x'
	case "RLock", "TryRLock", "TryRLockContext":
		return 's'
	}
	return 0
}

func free(handles []*handle, path string) bool {
	for _, h := range handles {
		if h.path == path && h.mode != 0 {
			return false
		}
	}
	return true
}

// possible returns how the call on h can be made where other handles are in its way: one
// that would wait must be able to give up, and none may be an upgrade, by which gofrs/flock
// would lose the old lock. It returns "" if it cannot.
func possible(handles []*handle, h *handle, call string) string {
	mode := wants(call)
	for _, other := range handles {
		if mode == 0 || other == h || other.path != h.path || other.mode == 0 || mode == 's' && other.mode == 's' {
			continue
		}
		switch {
		case call == "Lock" || call == "RLock" || h.mode != 0:
			return ""
		case call == "TryLockContext" || call == "TryRLockContext":
			return call + " short"
		}
	}
	return call
}

// note keeps what became of h.
func note(h *handle, call, answer string) {
	switch mode := wants(call); {
	case call == "Unlock" || call == "Close":
		h.mode, h.converted = 0, false
	case mode != 0 && (answer == "nil" || answer == "true nil"):
		h.converted = h.mode != 0 && h.mode != mode
		h.mode = mode
	}
}
