#!/usr/bin/env bash
# The short run of test/chaos: each class of faults by itself, then all of them together. As root, by as-root.sh. PADDOCK_CHAOS_SEED repeats a
# schedule.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin
cache=${PADDOCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/paddock}
bin/paddock image build --image-dir "$cache/images" base
export REQUIRE_CHAOS=1 REQUIRE_QEMU=1 REQUIRE_POSTGRES=1 REQUIRE_REDIS=1 REQUIRE_ROOT=1
exec go test -count=1 -timeout 20m -v ./test/chaos
