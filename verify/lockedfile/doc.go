// Package lockedfile runs flockctx's lockedfile and its peers through one harness: what
// each keeps of the file that it replaces, and what a process that is killed, or a
// machine that loses its power, may leave. The table in docs/lockedfile.md is what it
// saw; go test -update writes it.
package lockedfile
