module github.com/flockctx/flockctx/bench

go 1.26.0

require (
	github.com/alexflint/go-filemutex v1.3.0
	github.com/flockctx/flockctx v0.0.0
	github.com/gofrs/flock v0.13.2
	github.com/juju/fslock v0.0.0-20160525022230-4d5c94c67b4b
	github.com/rogpeppe/go-internal v1.16.0
	golang.org/x/sys v0.49.0
)

replace github.com/flockctx/flockctx => ../
