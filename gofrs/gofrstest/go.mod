module github.com/flockctx/flockctx/gofrs/gofrstest

go 1.26.0

replace github.com/flockctx/flockctx => ../../

require (
	github.com/flockctx/flockctx v0.0.0-00010101000000-000000000000
	github.com/gofrs/flock v0.13.2
	github.com/stretchr/testify v1.12.1
)

require gopkg.in/check.v1 v1.0.0-20201130134442-10cb98267c6c // indirect

require (
	github.com/juju/fslock v0.0.0-20160525022230-4d5c94c67b4b
	github.com/rogpeppe/go-internal v1.16.0
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
