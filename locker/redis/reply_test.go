package redis

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/flockctx/flockctx/locker"
)

type said string

func (s said) Error() string { return string(s) }
func (said) RedisError()     {}

var _ goredis.Error = said("")

// Redis 6 wraps what a command in a script was told.
func TestReply(t *testing.T) {
	for wrapped, want := range map[string]string{
		"READONLY You can't write against a read only replica.":                                                                      "READONLY You can't",
		"ERR Error running script (call to f_0): @user_script:100: @user_script: 100: -READONLY You can't write against a read only": "READONLY You can't",
		"ERR Error running script (call to f_0): @user_script:22: WRONGTYPE Operation against a key":                                 "WRONGTYPE Op",
		"ERR max number of clients reached":                                                                                          "ERR max number of clients",
	} {
		if got := reply(said(wrapped)); !strings.HasPrefix(got, want) {
			t.Errorf("reply of %q is %q", wrapped, got)
		}
	}
	if !(server{}).Transient(said("ERR Error running script (call to f_0): @user_script:100: @user_script: 100: -NOREPLICAS Not enough good replicas to write.")) {
		t.Error("NOREPLICAS in a script does not pass")
	}
	if reply(errors.New("READONLY")) != "" {
		t.Error("an error that is not the server's")
	}
}

func TestNilClient(t *testing.T) {
	var c *goredis.Client
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := New(c, nil).Lock(ctx, "x", locker.Exclusive); err == nil || !strings.Contains(err.Error(), "no client") {
		t.Errorf("nil client: %v", err)
	}
}
