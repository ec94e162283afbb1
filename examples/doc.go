// Package examples has a small complete program in each of its directories: quickstart
// first, then singleton, timeout, worker, httpserver, flockcontext and replicas.
package examples
