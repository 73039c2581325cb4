#!/usr/bin/env bash
# The tests that want a host whose KVM works: on this one where its KVM runs guests, else on one that is emulated here. As root, by as-root.sh.
# Nothing may skip. Logs, the host's console and what tests measured are in bin/kvmhost.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin
export REQUIRE_KVM=1 REQUIRE_QEMU=1 REQUIRE_ROOT=1

step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }

step "images for the tests (built once, then kept by content)"
cache=${PADDOCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/paddock}
bin/paddock image build --image-dir "$cache/images" base python

step "the host itself, and what it tells of programs that fail, skip, hang or leave something"
go test -count=1 -timeout 15m ./test/kvmhost/ ./test/kvmhost/steps/

step "the sets of test/kvmhost/sets.go"
mkdir -p bin
go build -o bin/test-kvm ./test/kvmhost/cmd # not go run, which does not pass signals on
bin/test-kvm --out bin/kvmhost

step "done"
