// Package vmmtest is the conformance suite of vmm.Driver: what every driver must do, run against real machines. It also has a guest
// to run in them, a Linux kernel to boot it with, and a count of all that a machine may leave behind.
//
// It may import vmm, vmm/checkpoint, what tests need, and nothing else of Paddock.
package vmmtest
