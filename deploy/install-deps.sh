#!/usr/bin/env bash
# Installs what Paddock needs on Debian 12 or 13, and only what is missing. Usage: install-deps.sh run|test
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
missing=()
reasons=()

lacks() {
  missing+=("$1")
  reasons+=("  $1: $2")
}

# need COMMAND PACKAGE WHY
need() { command -v "$1" >/dev/null 2>&1 || lacks "$2" "$3"; }

# need_file FILE PACKAGE WHY
need_file() { [ -e "$1" ] || lacks "$2" "$3"; }

# at_least HAVE WANT compares versions.
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

want=$(awk '$1 == "go" { print $2 }' "$(dirname "$0")/../go.mod")
switches=1.21 # since then a go fetches the toolchain that go.mod names (https://go.dev/doc/toolchain)

# go_version prints what go is in PATH: outside the module, where it would fetch another at once. Nothing where there is none.
go_version() { (cd / && go env GOVERSION 2>/dev/null || true) | sed -n 's/^\(devel \)\{0,1\}go\([0-9.]*\).*/\2/p'; }

# go_fetches tells whether this go may fetch another.
go_fetches() {
  case $(cd / && go env GOTOOLCHAIN) in
  auto | *+auto) ;;
  *) return 1 ;;
  esac
}

# go_usable tells whether the go in PATH can build Paddock.
go_usable() {
  local have
  have=$(go_version)
  [ -n "$have" ] || return 1
  at_least "$have" "$want" || { at_least "$have" "$switches" && go_fetches; }
}

# refuse_go says what to do where no go can be had.
refuse_go() {
  local have
  have=$(go_version)
  if [ -n "$have" ] && at_least "$have" "$switches"; then
    echo "paddock: Go $want or newer is needed; this is $have and may not fetch another: GOTOOLCHAIN is $(cd / && go env GOTOOLCHAIN)." >&2
    echo "paddock: GOTOOLCHAIN=auto in the environment lets it; so does: go env -w GOTOOLCHAIN=auto" >&2
  else
    echo "paddock: Go $switches or newer is needed (it fetches $want itself); there is ${have:-none}${have:+, $(command -v go)}." >&2
    echo "paddock: unpack one from https://go.dev/dl/ into /usr/local/go, and put it first: export PATH=/usr/local/go/bin:\$PATH" >&2
  fi
  exit 1
}

need qemu-system-x86_64 qemu-system-x86 "runs the virtual machines"
need mmdebstrap mmdebstrap "builds the images' root file systems"
need mkfs.erofs erofs-utils "packs them into read-only disks"
need mkfs.ext4 e2fsprogs "formats the machines' scratch disks"
need depmod kmod "reads kernel modules' dependencies"
need xz xz-utils "unpacks compressed kernel modules"
need_file /etc/ssl/certs/ca-certificates.crt ca-certificates "Go fetches modules, and its own newer versions, by HTTPS"
install_valkey=
case ${1:-run} in
run) ;;
test)
  need git git "the tests read the repository's own files"
  need gcc gcc "the race detector needs it"
  need_file /usr/include/stdlib.h libc6-dev "and the C library's headers"
  need python3 python3 "runs the Python examples"
  need node nodejs "runs the documents' JavaScript"
  need npm npm "installs the packages that it imports"
  need cpio cpio "checks the initramfs"
  need ip iproute2 "makes network namespaces"
  need nft nftables "counts the rules that are left"
  need openssl openssl "makes certificates as the documents do"
  need redis-server redis-server "is what the Redis ingress is tested with"
  need redis-sentinel redis-sentinel "and its Sentinel"
  if ! command -v valkey-server >/dev/null 2>&1; then # Debian 12 has it in its backports
    install_valkey=yes
    reasons+=("  valkey-server: is what the Redis ingress is tested with too")
  fi
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || need initdb postgresql "keeps the ledgers of fleets"
  python3 -c 'import venv, ensurepip' 2>/dev/null || lacks python3-venv "holds the Python examples' packages"
  ;;
*)
  echo "usage: $0 run|test" >&2
  exit 2
  ;;
esac

install_go=
if ! go_usable; then
  have=$(go_version)
  if [ -n "$have" ] && at_least "$have" "$switches"; then refuse_go; fi # another go would be told the same
  install_go=yes
  reasons+=("  golang-go: builds Paddock ($switches or newer, which fetches $want)")
fi
if [ ${#reasons[@]} -eq 0 ]; then exit 0; fi

sudo=
if [ "$(id -u)" -ne 0 ]; then
  sudo=sudo
  command -v sudo >/dev/null || { echo "paddock: not root and no sudo; install as root: apt-get install ${missing[*]} ${install_valkey:+valkey-server} ${install_go:+golang-go}" >&2; exit 1; }
fi
command -v apt-get >/dev/null || { echo "paddock: this is no Debian; install what these packages hold: ${missing[*]} ${install_valkey:+valkey-server} ${install_go:+golang-go}" >&2; exit 1; }
echo "installing with apt-get:"
printf '%s\n' "${reasons[@]}"

log=$(mktemp)
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
apt() { # waits its turn: a machine that has just started may be at its own updates
  if $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1; then return; fi
  tail -n 20 "$log" >&2
  echo "paddock: apt-get $* failed; its whole log is $log" >&2
  return 1
}

# offered prints the version that a package has in the system's sources: nothing where it is in none.
offered() { apt-cache policy "$1" | sed -n 's/^ *Candidate: *\([0-9]*:\)\{0,1\}\([0-9][0-9.]*\).*/\2/p'; }

# from_backports installs a package of Debian's backports. The system's own list of sources stays as it is.
from_backports() {
  local suite more=()
  suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)-backports
  echo "  $1 is $(offered "$1" | grep . || echo not there): taking that of $suite"
  if ! apt-cache madison "$1" | grep -q -- "$suite/"; then
    cp -r /etc/apt/sources.list.d/. "$sources" 2>/dev/null || true
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" >"$sources/paddock-backports.list"
    chmod -R a+rX "$sources" # apt reads it as another user
    more=(-o "Dir::Etc::SourceParts=$sources")
    apt "${more[@]}" update || return
  fi
  apt "${more[@]}" install -y --no-install-recommends -t "$suite" "$1"
}

# newest_go gets Debian's go, from its backports where that is too old: Debian 12 has 1.19.
newest_go() {
  local have
  have=$(offered golang-go)
  if [ -n "$have" ] && at_least "$have" "$switches"; then
    apt install -y --no-install-recommends golang-go
  else
    from_backports golang-go
  fi
}

# valkey gets Debian's, from its backports where there is none: Debian 12.
valkey() {
  if [ -n "$(offered valkey-server)" ]; then
    apt install -y --no-install-recommends valkey-server
  else
    from_backports valkey-server
  fi
}

apt update || exit
if [ ${#missing[@]} -gt 0 ]; then
  apt install -y --no-install-recommends "${missing[@]}" || exit
fi
if [ -n "$install_valkey" ]; then
  valkey || exit
fi
if [ -n "$install_go" ]; then
  newest_go || refuse_go
  hash -r
  go_usable || refuse_go
fi
rm -f "$log"
