# Begins every script: what it says goes to the test, and its end is the end of the system.
# shellcheck shell=bash
exec >/shared/log 2>&1
# shellcheck disable=SC2154 # assigned right here
trap 'code=$?; set +e; journalctl -b --no-pager -u "agentnet*" | tail -n 80; systemctl exit $code' EXIT
set -exuo pipefail

# As udev makes it, which does not run in containers.
chmod 666 /dev/net/tun

operator="--operator-token-file /var/lib/agentnet-registry/operator.token"

# until_so COMMAND...: waits until it succeeds, 20 s at most.
until_so() {
  local _
  for _ in $(seq 200); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  echo "not so after 20 s: $*"
  return 1
}

# is_back UNIT PID: tells whether a unit runs by another process than before.
is_back() {
  local now
  now=$(systemctl show -p MainPID --value "$1")
  [ "$now" != 0 ] && [ "$now" != "$2" ] && systemctl is-active -q "$1"
}

serve() {
  ip link set lo up
  agentnet registry init --dir /var/lib/agentnet-registry --listen 127.0.0.1:8443
  systemctl start agentnet-registry
  # shellcheck disable=SC2086 # two words
  agentnet gateway init --dir /var/lib/agentnet-gateway --listen 127.0.0.1:16201 --wss 127.0.0.1:443 $operator
  systemctl start agentnet-gateway
}
