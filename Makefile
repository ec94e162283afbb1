# What there is to make.
.DEFAULT_GOAL := help
.PHONY: help check
help:
	@sed -n 's/^# `\(make[^`]*\)`/\1:/p' Makefile

# `make check` vets and tests the root module in short, with nothing installed.
check:
	go vet ./...
	go test -short ./...

# `make test` runs all tests and installs what they need.
.PHONY: test bench
test:
	@scripts/test

# `make bench` measures flockctx beside its peers, and writes tables and pictures to
# bench/results/, and the figures of README.md. `make bench QUICK=1` takes two minutes, and
# writes to bench/quick/. bench/README.md says how long all of it takes.
bench:
	cd bench && go run . $(if $(QUICK),-quick -out quick,-out results -readme ../README.md)

# `make cover` says how much of each package the short tests of the root module run.
# HTML=cover.html shows which statements.
.PHONY: cover
cover:
	@HTML="$(HTML)" scripts/cover

# `make stress` updates a file 10,000 times in processes that are killed, and locks
# under faults for SECONDS seconds, drawn from SEED. What fails says how to repeat it.
SECONDS ?= 60
SEED ?= $(shell date +%s)
.PHONY: stress
stress:
	go test -run 'TestCrash$$' -v -count=1 -timeout 0 ./lockedfile -updates 10000 -seed $(SEED)
	cd verify && go test -run 'TestStress$$' -v -count=1 -timeout 0 . -seconds $(SECONDS) -seed $(SEED)

# `make environments` runs the library in environments that this machine is not: QEMU's
# user mode, sandboxes, hosts in other languages, Wine 10, and a guest with NFS and SMB
# servers. It takes an hour, and 4 GB of the cache; docs/environments.md says more.
# STEPS="gvisor hosts" runs these, WITHOUT="wine10" all but that.
.PHONY: environments
environments:
	@WITHOUT="$(WITHOUT)" scripts/environments/run $(STEPS)

# `make lint` says what is not well formed, in all modules, scripts and workflows.
.PHONY: lint
lint:
	@scripts/lint

# `make apidiff` says what the API has gained or lost since the last release.
.PHONY: apidiff
apidiff:
	@scripts/apidiff
