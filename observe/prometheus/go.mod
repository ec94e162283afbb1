module github.com/flockctx/flockctx/observe/prometheus

go 1.26.0

require (
	github.com/flockctx/flockctx v0.0.0
	github.com/prometheus/client_golang v1.23.2
	github.com/prometheus/common v0.67.5
	go.uber.org/goleak v1.3.0
)

replace github.com/flockctx/flockctx => ../../
