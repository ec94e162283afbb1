# `make test` runs all tests and installs what they need.
.PHONY: test
test:
	@scripts/test
