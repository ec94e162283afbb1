module github.com/flockctx/flockctx/gofrs/gofrstest

go 1.26.0

replace github.com/flockctx/flockctx => ../../

require (
	github.com/flockctx/flockctx v0.0.0-00010101000000-000000000000
	github.com/gofrs/flock v0.13.2
	github.com/stretchr/testify v1.12.1
)

require (
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
