// Package verify holds the evidence that flockctx keeps its promises: tests that
// lock in many processes at once, inject faults, and have a checker decide whether
// what happened is the history of a reader-writer lock. See docs/testing.md.
//
// It is a module of its own, so that users of flockctx see none of what it needs.
package verify
