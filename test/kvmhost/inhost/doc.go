// Package inhost has tests of the whole of Paddock for a host whose KVM works: test/kvmhost runs them in one.
package inhost
