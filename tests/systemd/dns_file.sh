# shellcheck shell=bash
# /etc/resolv.conf itself, and a node that may not write it: root does, at each start and whenever it is needed again.
link_is_up
nameserver 192.0.2.53 198.51.100.7
nameserver 192.0.2.54 198.51.100.8
lease() {
  echo "nameserver $1" >/etc/resolv.lease
  mv /etc/resolv.lease /etc/resolv.conf
}
rm -f /etc/resolv.conf
lease 192.0.2.53

node_is_ready
systemctl start agentnet
node_is_found
owner_is resolv-conf
[ "$(stat -c '%U %a' /etc/resolv.conf)" = "root 644" ]
finds www.example.com 198.51.100.7
# What root puts back is what root kept.
[ "$(stat -c '%U %a' /var/lib/agentnet-dns /var/lib/agentnet-dns/resolv-conf.json | tr '\n' ' ')" = "root 755 root 644 " ]

lease 192.0.2.54
until_so node_is_found
until_so finds www.example.net 198.51.100.8
agentnet join --token-file /tmp/token --name c
until_so getent hosts c.acme.agent
until_so owner_is resolv-conf

pid=$(systemctl show -p MainPID --value agentnet)
kill -9 "$pid"
until_so is_back agentnet "$pid"
until_so node_is_found
killed
[ "$(cat /etc/resolv.conf)" = "nameserver 192.0.2.54" ]
[ ! -e /var/lib/agentnet-dns ]
echo "the file is as it should be"
