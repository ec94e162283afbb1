module github.com/flockctx/flockctx/examples/httpserver

go 1.26.0

require (
	github.com/flockctx/flockctx v0.0.0
	github.com/flockctx/flockctx/observe/prometheus v0.0.0
	github.com/prometheus/client_golang v1.23.2
	go.uber.org/goleak v1.3.0
)

require (
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/prometheus/client_model v0.6.2 // indirect
	github.com/prometheus/common v0.67.5 // indirect
	github.com/prometheus/procfs v0.16.1 // indirect
	go.yaml.in/yaml/v2 v2.4.3 // indirect
	golang.org/x/sys v0.49.0 // indirect
	google.golang.org/protobuf v1.36.11 // indirect
)

replace (
	github.com/flockctx/flockctx => ../../
	github.com/flockctx/flockctx/observe/prometheus => ../../observe/prometheus
)
