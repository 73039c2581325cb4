#!/usr/bin/env bash
# All tests, in an order that fails early; as root, by as-root.sh. In CI nothing may skip what this machine can run.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin
if [ "${CI:-}" = true ]; then
  export REQUIRE_QEMU=1 REQUIRE_POSTGRES=1 REQUIRE_REDIS=1 REQUIRE_PACKAGES=1 REQUIRE_OPENSSL=1
  if [ "$(id -u)" -eq 0 ]; then export REQUIRE_ROOT=1; fi
  if [ "$(git rev-parse --is-shallow-repository 2>/dev/null)" = false ]; then export REQUIRE_HISTORY=1; fi # the version before is built from it
fi

step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }

step "vet"
go vet ./...

step "images for the tests (built once, then kept by content)"
cache=${PADDOCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/paddock}
bin/paddock image build --image-dir "$cache/images" base python

# those that take longest first
raced=$(go list ./bus/... ./worker ./dispatcher/... ./client/... ./objects/... ./jobs/... ./guestagent/wire/... ./guestagent/client/... ./vmm/inproc/... ./test/bubble)
step "packages without machines, with the race detector: three at a time, for much of it is waiting"
# SQLite is C in Go's words, with locks of its own, and four times as slow when each of its loads and stores is looked at.
# shellcheck disable=SC2086 # a list
CGO_ENABLED=1 go test -p 3 -race -gcflags=modernc.org/sqlite/lib=-race=false -gcflags=modernc.org/libc/...=-race=false -timeout 20m $raced

step "everything else: two packages at a time, for machines and what they are made of are mostly waited for"
alone=$(go list ./test/soak) # counts this host's mounts
first=$(go list ./test/e2e ./vmm/qemu) # they take longest, one beside all others
# shellcheck disable=SC2046,SC2086 # lists
go test -p 2 -timeout 25m $first $(go list ./... | grep -vxF -e "$raced" -e "$alone" -e "$first")

step "what wants this host for itself"
go test -timeout 10m "$alone"

step "done"
