#!/usr/bin/env bash
# Measures what docs/benchmarks.md reports: one file of raw samples for each measurement, then all of them as tables.
# As root, by as-root.sh. Usage: bench.sh [DIRECTORY]; the directory is bin/bench by default.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin
out=${1:-bin/bench}
cache=${PADDOCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/paddock}
images=$cache/images
mkdir -p "$out"
bin/paddock image build --image-dir "$images" base >/dev/null

measure() {
  local name=$1
  shift
  echo "measuring: paddock bench $*" >&2
  bin/paddock bench "$@" --image-dir "$images" --json >"$out/$name.json"
}

measure latency latency --jobs 100
measure latency-hostproc latency --driver hostproc --jobs 200 --pause 50ms
measure restore restore --clones 30
measure throughput-inproc throughput --driver inproc --jobs 10000
measure throughput-hostproc throughput --driver hostproc --jobs 2000
measure throughput-qemu throughput --driver qemu --jobs 60 --concurrency 8
measure density density --machines 50
measure snapshot snapshot --rounds 10
measure network network --slots 200
measure jail jail --vmms 60
bin/paddock bench show "$out"/*.json
