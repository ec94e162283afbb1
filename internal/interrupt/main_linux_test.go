//go:build !(mips || mipsle || mips64 || mips64le)

package interrupt_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/flockctx/flockctx/internal/interrupt"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what should happen soon, on a machine under any load.
const patience = 60 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// needSignal skips a test of the signal where there is none that can be used.
func needSignal(t *testing.T) {
	t.Helper()
	if !interrupt.Possible() {
		t.Skipf("SKIP: %s: no signal ends a wait here", t.Name())
	}
}

// A lock is one way to make a system call that waits.
type lock struct {
	name string
	wait func(fd int) error
}

var locks = []lock{
	{"flock", func(fd int) error { return unix.Flock(fd, unix.LOCK_EX) }},
	{"OFD", func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), 38, &unix.Flock_t{Type: unix.F_WRLCK}) // F_OFD_SETLKW
	}},
}

// held returns a descriptor for l, whose lock another one has, until release is called.
func (l lock) held(t testing.TB) (fd int, release func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	open := func() int {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		must(t, err)
		return fd
	}
	other := open()
	must(t, l.wait(other))
	release = sync.OnceFunc(func() { unix.Close(other) })
	fd = open()
	t.Cleanup(func() { release(); unix.Close(fd) })
	return fd, release
}

// run has call wait for the lock on fd, in a goroutine of its own.
func (l lock) run(call *interrupt.Call, fd int) <-chan error {
	done := make(chan error, 1)
	go func() { done <- call.Run(func() error { return interrupted(l.wait(fd)) }) }()
	return done
}

// interrupted gives EINTR the name that it has in the package.
func interrupted(err error) error {
	if err == unix.EINTR {
		return interrupt.ErrInterrupted
	}
	return err
}

// soon returns what arrives on ch, which has to be soon.
func soon[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		panic("hang: " + what) // prints all goroutines
	}
}

// async calls fn in a goroutine, and returns what is closed when that has returned.
func async(fn func()) <-chan struct{} {
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	return done
}

// spin passes the time without giving up the processor for long.
func spin(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		runtime.Gosched()
	}
}

// A disposition is the kernel's struct sigaction: the handler, the flags, and more.
type disposition struct {
	handler, flags uintptr
	rest           [30]uintptr
}

const restart = 0x10000000 // SA_RESTART

// disposed returns the disposition of the signal in use, after set, unless that is nil,
// took its place.
func disposed(t testing.TB, set *disposition) (old disposition) {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGWINCH),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	if errno != 0 {
		t.Error(errno)
	}
	return old
}

// signalMask returns the line of /proc about the signals that this thread blocks.
func signalMask(t testing.TB) unix.Sigset_t {
	t.Helper()
	var set unix.Sigset_t
	must(t, unix.PthreadSigmask(unix.SIG_BLOCK, nil, &set))
	return set
}

func threads() int {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		panic(fmt.Sprint("no /proc: ", err))
	}
	return len(entries)
}

// set is the set of one signal.
func set(sig unix.Signal) *unix.Sigset_t {
	var s unix.Sigset_t
	bits := 8 * int(unsafe.Sizeof(s.Val[0]))
	s.Val[(int(sig)-1)/bits] |= 1 << ((int(sig) - 1) % bits)
	return &s
}

func ptr(s *unix.Sigset_t) uintptr { return uintptr(unsafe.Pointer(s)) }
