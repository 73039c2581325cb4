#!/usr/bin/env bash
# Runs a command as root, with sudo where that is wanted: building images and jailing machines need it. What Go and Paddock cache is then
# root's own, in root's home, so that nothing of yours changes its owner. Usage: as-root.sh COMMAND ARG…
set -euo pipefail
if [ "$(id -u)" -eq 0 ]; then exec "$@"; fi
if ! command -v sudo >/dev/null; then
  echo "paddock: building images and jailing machines need root, and there is no sudo: run this as root" >&2
  exit 1
fi
echo "paddock: going on as root: building images and jailing machines need it" >&2
exec sudo -E -H env -u XDG_CACHE_HOME -u GOPATH -u GOCACHE -u GOMODCACHE PATH="$PATH" "$@" # sudo has a PATH of its own
