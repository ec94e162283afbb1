module github.com/flockctx/flockctx/etcd/etcdtest

go 1.26.0

require (
	github.com/flockctx/flockctx v0.0.0
	github.com/flockctx/flockctx/etcd v0.0.0
	go.etcd.io/etcd/client/v3 v3.7.3
	go.etcd.io/etcd/server/v3 v3.7.3
)

replace (
	github.com/flockctx/flockctx => ../../
	github.com/flockctx/flockctx/etcd => ../
)
