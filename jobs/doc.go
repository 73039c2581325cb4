// Package jobs is Paddock's contract, version 1: what a client may ask for, what it gets back, what workers and the
// dispatcher say to each other about it, and the NATS subjects on which all of it travels.
//
// Everything here is plain data with JSON tags and the rules that make data valid. Times are RFC 3339 in UTC, durations are
// integers with the unit in the field's name (wall_ms), sizes are bytes. The package imports the standard library only and
// does no I/O; docs/jobs.md is its reference for people, jobs/schema holds the generated JSON Schemas.
package jobs

// Version is the contract's version, the value of Spec.Version and the second token of every subject.
const Version = "v1"
