// Package kvmhost runs Paddock's tests on a host with KVM: on this machine where its own KVM runs guests, and else in a Debian host that
// QEMU emulates with AMD's virtualization in it (nested paging over TCG: slow, and true in all that a test can see). The host has pure
// cgroup v2, nf_tables, TAP devices and /dev/vhost-vsock, which machines without usable KVM often lack too.
//
// The host's disk is built once and kept by content; what a run writes to it is thrown away. A second disk carries the payload: test
// programs, bin/paddock, images, the repository's files. Inside, a small init runs the steps one after the other (package steps) and
// tells all that happens through a serial port. Nothing may skip there, and nothing of a run stays behind but the directory of results.
//
// docs/kvm-host.md says how to use it; sets.go has the table of what is run.
package kvmhost
