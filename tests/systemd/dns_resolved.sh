# shellcheck shell=bash
link_is_up
ip addr add 192.0.2.2/24 dev eth0
nameserver 192.0.2.53 198.51.100.7
install resolved
# The bus knew its user too late.
systemctl restart systemd-resolved
resolvectl dns eth0 192.0.2.53
resolvectl domain eth0 '~.'
until_so finds www.example.com 198.51.100.7
readlink /etc/resolv.conf >/tmp/before
resolvectl domain >>/tmp/before

node_is_ready
systemctl start agentnet
node_is_found
until_so owner_is resolved
# What it was told is all of it: these domains, and no way for other names.
device=$(sed 's/.*"device":"\([^"]*\)".*/\1/' /tmp/dns.json)
resolvectl domain "$device" | grep -q ': ~agent ~[0-9a-f.]*ip6.arpa$'
resolvectl default-route "$device" | grep -q ': no$'
finds www.example.org 198.51.100.7
if grep -i 'agent$\|ip6.arpa$' /tmp/asked-192.0.2.53; then exit 1; fi
[ "$(readlink /etc/resolv.conf)" = "$(head -n 1 /tmp/before)" ]

# Boot order, restarts, lost settings: tailscale#7257, netbird#4060.
systemctl restart systemd-resolved
until_so node_is_found
resolvectl revert "$device"
until_so getent hosts a.acme.agent
systemctl stop agentnet systemd-resolved
systemctl start agentnet
until_so node_is_found

# Root may take the settings back, and ask for them again.
agentnet dns revert
# The nameserver of the link has an answer to everything.
finds a.acme.agent 198.51.100.7
rm /tmp/asked-192.0.2.53
agentnet dns apply
if finds a.acme.agent 198.51.100.7; then exit 1; fi
node_is_found

pid=$(systemctl show -p MainPID --value agentnet)
kill -9 "$pid"
until_so is_back agentnet "$pid"
until_so node_is_found
killed
readlink /etc/resolv.conf >/tmp/after
resolvectl domain >>/tmp/after
diff /tmp/before /tmp/after
finds www.example.net 198.51.100.7
if grep -i 'acme\|ip6.arpa$' /tmp/asked-192.0.2.53; then exit 1; fi
echo "resolved does as it should"
