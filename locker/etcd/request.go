package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/flockctx/flockctx/internal/lease"
)

const (
	// maxAttempt bounds the wait for the answer of one server.
	maxAttempt = 2 * time.Second

	// retryPause lies between two tries of a request that failed at once.
	retryPause = 50 * time.Millisecond
)

// insist makes a request until it is answered or ctx ends. Each try has a limit: a
// frozen server never answers, and the next one in turn may be well. So what is asked
// must do no harm if it is done twice.
func (e *engine) insist(ctx context.Context, request func(context.Context) error) error {
	for {
		limited, cancel := context.WithTimeout(ctx, min(e.ttl/3, maxAttempt))
		err := request(limited)
		expired := limited.Err() != nil
		cancel()
		switch {
		case err == nil, ctx.Err() != nil, e.client.Ctx().Err() != nil:
			return err
		case expired:
		case passes(err):
			if !pause(ctx, retryPause) {
				return err
			}
		default:
			return err
		}
	}
}

// passes reports whether a server's refusal is one of the moment.
func passes(err error) bool {
	c := code(err)
	return c == codes.Unavailable || c == codes.ResourceExhausted && !errors.Is(err, rpctypes.ErrNoSpace)
}

// pause waits for d. It reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func code(err error) codes.Code {
	var e interface{ Code() codes.Code }
	if errors.As(err, &e) {
		return e.Code()
	}
	return status.Code(err)
}

// silence says why etcd does not answer.
func (e *engine) silence() error {
	switch e.client.ActiveConnection().GetState() {
	case connectivity.Connecting, connectivity.TransientFailure:
		return fmt.Errorf("no connection to etcd at %s", strings.Join(e.client.Endpoints(), ", "))
	}
	return errors.New("no answer from etcd")
}

// explain adds to a server's error what to do about it.
func (e *engine) explain(err error) error {
	switch {
	case e.client.Ctx().Err() != nil:
		return fmt.Errorf("the client: %w", fs.ErrClosed)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return lease.Unavailable(e.silence())
	case code(err) == codes.Unimplemented:
		return fmt.Errorf("the server does not offer the API of etcd 3, is it older? %w: %w", errors.ErrUnsupported, err)
	case passes(err):
		return lease.Unavailable(fmt.Errorf("%w: %w", e.silence(), err))
	case errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrUserEmpty):
		return fmt.Errorf("etcd refuses the credentials: %w", err)
	}
	return err
}

// get reads keys.
func (e *engine) get(ctx context.Context, key string, opts ...clientv3.OpOption) (resp *clientv3.GetResponse, err error) {
	err = e.insist(ctx, func(ctx context.Context) (err error) {
		resp, err = e.client.Get(ctx, key, opts...)
		return err
	})
	return resp, err
}

// txn makes a transaction.
func (e *engine) txn(ctx context.Context, conds []clientv3.Cmp, then, otherwise []clientv3.Op) (resp *clientv3.TxnResponse, err error) {
	err = e.insist(ctx, func(ctx context.Context) (err error) {
		resp, err = e.client.Txn(ctx).If(conds...).Then(then...).Else(otherwise...).Commit()
		return err
	})
	return resp, err
}
