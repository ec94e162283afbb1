// Package lineage lets an engine find, in the context of a Lock, the locks under which
// it is called.
package lineage

import "context"

// Key is the key of the Lock that the context of a Held may have.
type Key struct{}

// A Lock knows the lock under which it was taken, of whatever engine.
type Lock interface {
	Outer() Lock // nil: none
}

// From returns the lock under which ctx is, or nil.
func From(ctx context.Context) Lock {
	l, _ := ctx.Value(Key{}).(Lock)
	return l
}

// With returns ctx under l.
func With(ctx context.Context, l Lock) context.Context { return context.WithValue(ctx, Key{}, l) }
