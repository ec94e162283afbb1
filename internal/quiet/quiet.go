// Package quiet watches for the end of a context that is a caller's and may panic. Package
// context asks one that is not its own in a goroutine of its own, where a panic would end
// the process; so it is shown a [Context], which asks the caller's for values only.
package quiet

import (
	"context"
	"time"
)

// A Context is Of as package context may see it. Channel is Of's Done, asked
// for before.
type Context struct {
	Of      context.Context
	Channel <-chan struct{}
}

func (c Context) Deadline() (d time.Time, ok bool) { return d, false }
func (c Context) Done() <-chan struct{}            { return c.Channel }

func (c Context) Err() error {
	select {
	case <-c.Channel:
		return context.Canceled
	default:
		return nil
	}
}

// Value lets package context recognize its own contexts, which need no goroutine.
func (c Context) Value(key any) any {
	defer func() { _ = recover() }()
	return c.Of.Value(key)
}

// OnEnd has fn called, in a goroutine of its own, when ctx ends, whose Done is done. When
// stop has returned, fn is not called any more, or has returned.
func OnEnd(ctx context.Context, done <-chan struct{}, fn func()) (stop func()) {
	if done == nil {
		return func() {}
	}
	ended := make(chan struct{})
	detach := context.AfterFunc(Context{ctx, done}, func() {
		defer close(ended)
		fn()
	})
	return func() {
		if !detach() {
			<-ended
		}
	}
}
