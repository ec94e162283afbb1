package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
)

// A store is the resource that the lock guards: a number in a file, with the highest
// token that has come. It stands for whatever the replicas share, such as a row of a table
// (UPDATE … WHERE token <= $1) or an object with a conditional write. What matters is
// that it compares the token and writes in one step; here a file lock makes it one.
type store struct{ path string }

type record struct {
	Visitors int
	Token    locker.Token
}

// errStaleToken: a later holder of the lock has written.
var errStaleToken = errors.New("the lock has been granted to another one since")

// get returns the number, and from then on refuses holders with a lower token: they
// must not change what this one has read.
func (s *store) get(ctx context.Context, token locker.Token) (n int, err error) {
	err = s.update(ctx, token, func(r *record) { n = r.Visitors })
	return n, err
}

// put writes n unless a holder with a higher token has come.
func (s *store) put(ctx context.Context, token locker.Token, n int) error {
	return s.update(ctx, token, func(r *record) { r.Visitors = n })
}

// look returns the number for whoever holds no lock.
func (s *store) look(ctx context.Context) (int, error) {
	var r record
	err := flockctx.Do(ctx, s.path, &flockctx.Options{Mode: flockctx.Shared}, func(l *flockctx.Flock) (err error) {
		r, err = read(l.File())
		return err
	})
	return r.Visitors, err
}

func read(f io.Reader) (r record, err error) {
	b, err := io.ReadAll(io.LimitReader(f, 256))
	if err == nil && len(bytes.TrimSpace(b)) > 0 {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

// update compares the token and writes what fn makes of the record, in one step. Tokens
// of another epoch cannot be compared: whoever rebuilds the lock server must see to it
// that no holder of the old one is left. ctx ends the wait for the file.
func (s *store) update(ctx context.Context, token locker.Token, fn func(*record)) error {
	return flockctx.Do(ctx, s.path, nil, func(l *flockctx.Flock) error {
		r, err := read(l.File())
		if err != nil {
			return err
		}
		if token.Epoch == r.Token.Epoch && token.N < r.Token.N {
			return fmt.Errorf("token %v after %v: %w", token, r.Token, errStaleToken)
		}
		r.Token = token
		fn(&r)
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		// Padded, so that one write replaces any older record.
		b = append(b, bytes.Repeat([]byte(" "), max(0, 127-len(b)))...)
		_, err = l.File().WriteAt(append(b, '\n'), 0)
		return err
	})
}
