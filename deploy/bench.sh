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

# A PostgreSQL of the measurement's own, beside the other ledgers' files. It does not run as root.
pg=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1)
db=$(mktemp -d /var/tmp/pd-bench-postgres-XXXXXX)
chown postgres "$db"
postgres() { (cd "$db" && setpriv --reuid postgres --regid postgres --init-groups "$@"); }
stop_postgres() {
  postgres "$pg/pg_ctl" -D "$db/data" -m fast stop >/dev/null || true
  rm -rf "$db"
}
trap stop_postgres EXIT
postgres "$pg/initdb" -D "$db/data" -A trust -U postgres --locale=C -E UTF8 >/dev/null
port=$((20000 + RANDOM % 10000)) # below what connections get
# No checkpoint while it is measured: the one after a million inserts in seconds holds up a small disk for as long again.
postgres "$pg/pg_ctl" -D "$db/data" -o "-h 127.0.0.1 -p $port -k $db -c max_wal_size=8GB -c checkpoint_timeout=30min" -l "$db/log" -w start >/dev/null
# ledger gives an empty database's URL.
ledger() {
  postgres "$pg/createdb" -h 127.0.0.1 -p "$port" -U postgres "$1"
  echo "postgres://postgres@127.0.0.1:$port/$1"
}

measure() {
  local name=$1
  shift
  echo "measuring: paddock bench $*" >&2
  bin/paddock bench "$@" --image-dir "$images" --json >"$out/$name.json"
}

measure latency latency --jobs 100
measure latency-hostproc latency --driver hostproc --jobs 200 --pause 50ms
measure boot boot --machines 10
measure restore restore --clones 30
measure throughput-inproc throughput --driver inproc --jobs 20000 --concurrency 512 --slots 256
measure throughput-inproc-postgres throughput --driver inproc --jobs 20000 --concurrency 512 --slots 256 --ledger "$(ledger throughput)"
measure throughput-hostproc throughput --driver hostproc --jobs 3000 --slots 16
measure throughput-qemu throughput --driver qemu --jobs 60 --concurrency 8
measure queue queue --queued 1000000
measure queue-postgres queue --queued 1000000 --ledger "$(ledger queue)"
measure density density --machines 50
measure snapshot snapshot --rounds 10
measure network network --slots 200
measure jail jail --vmms 60
measure asynq asynq --tasks 2000
bin/paddock bench show "$out"/*.json
