#!/usr/bin/env bash
# Installs what Paddock needs on Debian 12 or 13, and only what is missing. Usage: install-deps.sh run|test
set -euo pipefail

missing=()
reasons=()

# need COMMAND PACKAGE WHY
need() {
  command -v "$1" >/dev/null 2>&1 && return
  missing+=("$2")
  reasons+=("  $2: $3")
}

PATH=$PATH:/usr/sbin:/sbin
need go golang-go "builds Paddock (1.26 or newer)"
need qemu-system-x86_64 qemu-system-x86 "runs the virtual machines"
need mmdebstrap mmdebstrap "builds the images' root file systems"
need mkfs.erofs erofs-utils "packs them into read-only disks"
need mkfs.ext4 e2fsprogs "formats the machines' scratch disks"
need depmod kmod "reads kernel modules' dependencies"
need xz xz-utils "unpacks compressed kernel modules"
case ${1:-run} in
run) ;;
test)
  need git git "the tests read the repository's own files"
  need gcc gcc "the race detector needs it"
  need python3 python3 "runs the Python examples"
  need cpio cpio "checks the initramfs"
  if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    missing+=(python3-venv) reasons+=("  python3-venv: holds the Python examples' packages")
  fi
  ;;
*)
  echo "usage: $0 run|test" >&2
  exit 2
  ;;
esac

if [ ${#missing[@]} -gt 0 ]; then
  sudo=
  if [ "$(id -u)" -ne 0 ]; then
    sudo=sudo
    command -v sudo >/dev/null || { echo "paddock: not root and no sudo; install as root: apt-get install ${missing[*]}" >&2; exit 1; }
  fi
  command -v apt-get >/dev/null || { echo "paddock: this is no Debian; install what these packages hold: ${missing[*]}" >&2; exit 1; }
  echo "installing with apt-get:"
  printf '%s\n' "${reasons[@]}"
  log=$(mktemp)
  if ! { $sudo apt-get update -q && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "paddock: apt-get could not install ${missing[*]}; its whole log is $log" >&2
    exit 1
  fi
  rm -f "$log"
fi

want=$(awk '$1 == "go" { print $2 }' "$(dirname "$0")/../go.mod")
have=$(go env GOVERSION)
if [ "$(printf '%s\n' "go$want" "$have" | sort -V | head -n 1)" != "go$want" ] && [ "$(go env GOTOOLCHAIN)" = local ]; then
  echo "paddock: Go $want or newer is needed, this is $have and may not fetch another (GOTOOLCHAIN=local)" >&2
  exit 1
fi
