# shellcheck shell=bash
# Debian's resolvconf or openresolv: whose packages are in /shared/flavour.
flavour=$(cat /shared/flavour)
link_is_up
nameserver 192.0.2.53 198.51.100.7
nameserver 192.0.2.54 198.51.100.8
rm -f /etc/resolv.conf
install "$flavour"
if [ "$flavour" = resolvconf ]; then ln -sf ../run/resolvconf/resolv.conf /etc/resolv.conf; fi
printf 'nameserver 192.0.2.53\nsearch corp.example\n' | resolvconf -a eth0.dhclient
finds www.example.com 198.51.100.7
cat /etc/resolv.conf
cp /etc/resolv.conf /tmp/before
ls -l /etc/resolv.conf

node_is_ready
systemctl start agentnet
node_is_found
until_so owner_is "$flavour"
[ "$(grep -c ^nameserver /etc/resolv.conf)" = 1 ]
grep 'search acme.agent' /etc/resolv.conf
finds www.example.org 198.51.100.7
if grep -i 'agent$\|ip6.arpa$' /tmp/asked-192.0.2.53; then exit 1; fi

# A new lease: its nameserver is asked, and ours stands.
printf 'nameserver 192.0.2.54\nsearch corp.example\n' | resolvconf -a eth0.dhclient
until_so finds www.example.net 198.51.100.8
node_is_found

printf 'nameserver 192.0.2.53\nsearch corp.example\n' | resolvconf -a eth0.dhclient
killed
cmp /tmp/before /etc/resolv.conf
systemctl start agentnet
node_is_found
systemctl stop agentnet
cmp /tmp/before /etc/resolv.conf
finds www.example.com 198.51.100.7
echo "resolvconf does as it should"
