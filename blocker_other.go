//go:build (!linux && !windows) || (linux && (mips || mipsle || mips64 || mips64le))

package flockctx

// An interrupt would end a wait in the kernel; here there is none.
type interrupt struct{}

func (*interrupt) fire() {}

func canBlock() bool { return false }

func (d *descriptor) isLocal() bool { return false }

func (l *Flock) block(a *attempt, m Mode) error { return errMustPoll }
