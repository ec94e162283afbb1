module github.com/flockctx/flockctx/locker/redis/peertest

go 1.26.0

require (
	github.com/bsm/redislock v0.9.4
	github.com/flockctx/flockctx v0.0.0
	github.com/flockctx/flockctx/locker/redis v0.0.0
	github.com/go-redsync/redsync/v4 v4.18.1
	github.com/redis/go-redis/v9 v9.23.0
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	go.uber.org/atomic v1.12.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace (
	github.com/flockctx/flockctx => ../../../
	github.com/flockctx/flockctx/locker/redis => ../
)
