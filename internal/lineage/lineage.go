// Package lineage lets an engine find, in the context of a Lock, the lock under which
// it is called.
package lineage

// Key is the key of the value that the context of a Held may have for its engine.
type Key struct{}
