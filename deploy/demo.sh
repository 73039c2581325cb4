#!/usr/bin/env bash
# What `make run` shows: Paddock starts, a Python program runs in a machine of its own, its output arrives while it runs, all ends.
# As root, by as-root.sh. The state directory is PADDOCK_STATE_DIR, else paddock's default; a second run reuses the images and templates in it.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin

port=${PADDOCK_DEMO_PORT:-4222}
metrics=$((port + 5242)) # 9464 beside 4222
state=${PADDOCK_STATE_DIR:-/var/lib/paddock}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

bin/paddock up --state-dir "$state" --listen "127.0.0.1:$port" --metrics-listen "127.0.0.1:$metrics" --images python > >(tee "$log") 2>&1 &
up=$!
stop() {
  kill -TERM "$up" 2>/dev/null || true
  wait "$up" || true
}
trap 'stop; rm -f "$log"' EXIT
until grep -q '^paddock: ready' "$log"; do
  if ! kill -0 "$up" 2>/dev/null; then
    wait "$up" || exit $?
    exit 1
  fi
  sleep 0.1
done

# How many machines wait in the pool.
machines() {
  {
    printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
    sed -n 's/^paddock_machines_ready \([0-9]*\).*/\1/p' <&3
  } 3<>"/dev/tcp/127.0.0.1/$metrics"
}
for _ in $(seq 600); do
  if [ "$(machines)" != 0 ]; then break; fi
  sleep 0.1
done

program=$(mktemp --suffix .py)
trap 'stop; rm -f "$log" "$program"' EXIT
cat >"$program" <<'PY'
import os, platform, time

print("hello from", platform.node(), "- kernel", platform.release(), "- uid", os.getuid(), flush=True)
for i in range(5):
    print("line", i, "printed at", time.strftime("%H:%M:%S"), flush=True)
    time.sleep(1)
PY

echo
echo "--- paddock run hello.py: its output, as it comes"
bin/paddock run --nats "nats://127.0.0.1:$port" "$program" 2>&1 |
  while IFS= read -r line; do printf '%s  %s\n' "$(date +%H:%M:%S.%3N)" "$line"; done
echo
echo "--- paddock get (the last job): its result, with the time of each phase in milliseconds"
job=$(bin/paddock ls --nats "nats://127.0.0.1:$port" -o json | sed -n 's/^ *"id": *"\([^"]*\)".*/\1/p' | head -n 1)
bin/paddock get --nats "nats://127.0.0.1:$port" "$job"
