module github.com/flockctx/flockctx/verify

go 1.26.0

replace github.com/flockctx/flockctx => ../

require (
	github.com/anishathalye/porcupine v1.3.1
	github.com/flockctx/flockctx v0.0.0-00010101000000-000000000000
	golang.org/x/sys v0.49.0
)

require github.com/gofrs/flock v0.13.2

require github.com/hanwen/go-fuse/v2 v2.12.1

require (
	github.com/google/renameio/v2 v2.0.2
	github.com/moby/sys/atomicwriter v0.1.0
	github.com/natefinch/atomic v1.0.1
	github.com/rogpeppe/go-internal v1.16.0
)

require github.com/moby/sys/sequential v0.6.0 // indirect
