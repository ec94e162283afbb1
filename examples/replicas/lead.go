package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/flockctx/flockctx/locker"
)

// A reporter is what one replica alone does all the time, the leader: it writes a report,
// with the next number, every now and then. The others stand by, and one of them goes on
// where it ends.
type reporter struct {
	locker locker.Locker
	store  *store
	every  time.Duration
	leads  atomic.Bool
}

// run campaigns and leads until ctx is done, or the store fails.
func (r *reporter) run(ctx context.Context) error {
	err := locker.Lead(ctx, r.locker, "reporter", func(ctx context.Context) error {
		h, _ := locker.HeldFrom(ctx)
		token, _ := h.Token() // zero with files
		log.Printf("leads, with token %v", token)
		r.leads.Store(true)
		defer r.leads.Store(false)
		for ctx.Err() == nil {
			n, err := r.store.get(ctx, token)
			if err == nil {
				err = r.store.put(ctx, token, n+1)
			}
			switch {
			case ctx.Err() != nil:
			case errors.Is(err, errStaleToken): // a later leader: ctx is about to end
			case err != nil:
				return err
			}
			select {
			case <-time.After(r.every):
			case <-ctx.Done():
			}
		}
		log.Printf("does not lead any more: %v", context.Cause(ctx))
		return nil
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (r *reporter) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	n, err := r.store.look(req.Context())
	if err != nil {
		log.Printf("error: %v", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	role := "stands by"
	if r.leads.Load() {
		role = "leads"
	}
	fmt.Fprintf(w, "%s, report %d\n", role, n)
}
