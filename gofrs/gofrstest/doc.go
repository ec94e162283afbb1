// Package gofrstest tests the package flock of the folder above beside the original,
// github.com/gofrs/flock, on which it depends, and flockctx must not.
package gofrstest
