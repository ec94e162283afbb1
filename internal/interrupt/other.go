//go:build (!linux && !windows) || (linux && (mips || mipsle || mips64 || mips64le))

package interrupt

// A Call would be one wait in the kernel; here there is none.
type Call struct{}

func (*Call) Fire() {}

func (*Call) Fired() bool { return false }

func (*Call) Run(func() error) error { return ErrImpossible }

// Possible reports false: nothing ends a wait here.
func Possible() bool { return false }
