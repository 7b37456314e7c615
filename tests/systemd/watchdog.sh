# shellcheck shell=bash
for unit in agentnet-gateway agentnet-registry; do
  mkdir -p "/run/systemd/system/$unit.service.d"
  printf '[Service]\nWatchdogSec=2\n' >"/run/systemd/system/$unit.service.d/short.conf"
done
systemctl daemon-reload
serve
gateway=$(systemctl show -p MainPID --value agentnet-gateway)
registry=$(systemctl show -p MainPID --value agentnet-registry)
kill -STOP "$gateway"
until_so is_back agentnet-gateway "$gateway"
journalctl -b -u agentnet-gateway | grep -q "Watchdog timeout"
# The other one lived through all of its own timeouts meanwhile.
[ "$(systemctl show -p MainPID --value agentnet-registry)" = "$registry" ]
echo "the watchdog did it"
