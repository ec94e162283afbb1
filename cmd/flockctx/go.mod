module github.com/flockctx/flockctx/cmd/flockctx

go 1.26.0

replace github.com/flockctx/flockctx => ../../

require (
	github.com/flockctx/flockctx v0.0.0
	github.com/spf13/pflag v1.1.0
	golang.org/x/text v0.44.0
)

require golang.org/x/sys v0.49.0

require github.com/hanwen/go-fuse/v2 v2.12.1
