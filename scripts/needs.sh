# shellcheck shell=bash
# Sourced by scripts/test, scripts/demo and others: what they need of the machine, installed when missing.
export PATH="$PATH:/usr/sbin:/sbin"

say() { printf '\n== %s\n' "$*"; }
fail() { printf '\n%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# The Debian package a command comes in.
package_of() {
  case $1 in
    cc) echo build-essential ;;
    dig) echo bind9-dnsutils ;;
    dpkg-shlibdeps) echo dpkg-dev ;;
    go) echo golang-go ;;
    ip) echo iproute2 ;;
    miniupnpd) echo miniupnpd-nftables ;;
    musl-gcc) echo musl-tools ;;
    nc) echo netcat-openbsd ;;
    nft) echo nftables ;;
    node) echo nodejs ;;
    nsenter | setpriv | unshare) echo util-linux ;;
    pgrep) echo procps ;;
    ping) echo iputils-ping ;;
    strip) echo binutils ;;
    systemd-nspawn) echo systemd-container ;;
    psql) echo postgresql-client ;;
    # Debian's openssh-server would be a service of this machine from then on; this one is none.
    dropbear | dropbearkey) echo dropbear-bin ;;
    ssh | ssh-keygen) echo openssh-client ;;
    stun) echo stun-client ;;
    turnserver | turnutils_*) echo coturn ;;
    wg) echo wireguard-tools ;;
    *) echo "$1" ;;
  esac
}

# Installs packages. The services that some bring with them are neither started nor enabled: a squid or a router's
# daemon is not what somebody wants who runs tests.
apt_install() {
  local policy=/usr/sbin/policy-rc.d service
  (
    if [ ! -e "$policy" ]; then
      trap 'as_root rm -f "$policy"' EXIT
      printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
      as_root chmod 755 "$policy"
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
  ) || return 1
  for service in squid tinyproxy coturn; do
    case " $* " in
      *" $service"[\ -]*) as_root systemctl disable -q "$service" 2>/dev/null || true ;;
    esac
  done
}

# Installs the packages of those commands that are not there, and says so first.
need_commands() {
  local command missing=()
  for command in "$@"; do
    command -v "$command" >/dev/null || missing+=("$(package_of "$command")")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  say "installing with apt-get: ${missing[*]}"
  command -v apt-get >/dev/null || fail "no apt-get here: install ${missing[*]} another way"
  as_root apt-get update -q || fail "cannot run apt-get as root: install ${missing[*]} first"
  apt_install "${missing[@]}"
}

# The program of a PostgreSQL server, and no server: Debian makes a database and starts it unless told otherwise.
need_postgres() {
  ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || return 0
  need_commands psql
  say "installing with apt-get: postgresql, without a database of its own"
  command -v apt-get >/dev/null || fail "no apt-get here: install postgresql another way"
  local settings=/etc/postgresql-common/createcluster.conf kept
  as_root apt-get update -q || fail "cannot run apt-get as root: install postgresql first"
  apt_install postgresql-common
  kept=$(cat "$settings")
  echo 'create_main_cluster = false' | as_root tee -a "$settings" >/dev/null
  local failed=
  apt_install postgresql || failed=1
  echo "$kept" | as_root tee "$settings" >/dev/null
  [ -z "$failed" ] || fail "cannot install postgresql"
}

# What makes the Debian package (scripts/package).
cargo_deb=3.8.0
need_cargo_deb() {
  need_commands dpkg-deb dpkg-shlibdeps strip
  [ "$(cargo-deb --version 2>/dev/null)" != "cargo-deb $cargo_deb" ] || return 0
  say "installing cargo-deb $cargo_deb by cargo"
  cargo install --quiet --locked --force --debug "cargo-deb@$cargo_deb"
}

# Private worlds need user namespaces, and a TUN device that this user may open.
need_worlds() {
  if [ ! -e /dev/net/tun ]; then
    say "making /dev/net/tun"
    as_root mkdir -p /dev/net
    as_root mknod -m 0666 /dev/net/tun c 10 200
  fi
  if [ ! -r /dev/net/tun ] || [ ! -w /dev/net/tun ]; then
    say "letting everyone open /dev/net/tun, as udev does"
    as_root chmod 0666 /dev/net/tun || fail "run once as root: chmod 0666 /dev/net/tun"
  fi
  unshare --user --map-root-user --net --mount --pid --fork --mount-proc true || fail \
    "user namespaces are not allowed here: run as root, or set kernel.unprivileged_userns_clone=1" \
    "and kernel.apparmor_restrict_unprivileged_userns=0 (those that exist) by sysctl"
}
