#!/usr/bin/env bash
# All tests, in an order that fails early; as root, by as-root.sh. In CI nothing may skip what this machine can run.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin
if [ "${CI:-}" = true ]; then
  export REQUIRE_QEMU=1
  if [ "$(id -u)" -eq 0 ]; then export REQUIRE_ROOT=1; fi
fi

step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }

step "vet"
go vet ./...

step "images for the tests (built once, then kept by content)"
cache=${PADDOCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/paddock}
bin/paddock image build --image-dir "$cache/images" base python

step "packages without machines, with the race detector"
CGO_ENABLED=1 go test -race ./jobs/... ./guestagent/wire/... ./guestagent/client/... ./worker ./dispatcher/... ./objects/... ./bus/... ./client/... ./vmm/inproc/...

step "everything"
go test -p 1 -timeout 25m ./...

step "done"
