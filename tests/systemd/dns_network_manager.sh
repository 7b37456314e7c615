# shellcheck shell=bash
link_is_up
nameserver 192.0.2.53 198.51.100.7
nameserver 192.0.2.54 198.51.100.8
rm -f /etc/resolv.conf
install network-manager
# Nothing here waits for all links.
systemctl mask NetworkManager-wait-online
systemctl start NetworkManager
nmcli device set eth0 managed yes
nmcli connection add type ethernet ifname eth0 con-name lan ipv4.method manual ipv4.addresses 192.0.2.2/24 \
  ipv4.dns 192.0.2.53 ipv4.dns-search corp.example ipv6.method disabled
nmcli connection up lan
until_so finds www.example.com 198.51.100.7
grep NetworkManager /etc/resolv.conf
ls -l /etc/resolv.conf
cp /etc/resolv.conf /tmp/before

node_is_ready
systemctl start agentnet
node_is_found
until_so owner_is networkmanager
# Ours stands alone, and foreign names go on to the nameserver of the connection.
[ "$(grep -c ^nameserver /etc/resolv.conf)" = 1 ]
grep 'search acme.agent corp.example' /etc/resolv.conf
finds www.example.org 198.51.100.7
if grep -i 'agent$\|ip6.arpa$' /tmp/asked-192.0.2.53; then exit 1; fi

# A new lease brings a new nameserver: it is asked from then on, and ours stands.
nmcli connection modify lan ipv4.dns 192.0.2.54
nmcli connection up lan
until_so finds www.example.net 198.51.100.8
node_is_found
systemctl restart NetworkManager
until_so node_is_found
until_so finds www.example.edu 198.51.100.8

nmcli connection modify lan ipv4.dns 192.0.2.53
nmcli connection up lan
killed
until_so cmp /tmp/before /etc/resolv.conf
finds www.example.com 198.51.100.7
[ ! -e /run/NetworkManager/conf.d/agentnet.conf ]
systemctl start agentnet
node_is_found
systemctl stop agentnet
until_so cmp /tmp/before /etc/resolv.conf
echo "NetworkManager does as it should"
