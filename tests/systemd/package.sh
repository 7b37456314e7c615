# shellcheck shell=bash
# The Debian package on a host of its own, /shared/agentnet.deb, with a second agent in a network namespace.

# What the host is: addresses, routes, users, every file, beside what a running Debian writes anyway.
host_is() {
  ip -o link; ip -o addr | sed 's/ *valid_lft.*//'; ip route; ip -6 route; ip rule
  cat /etc/resolv.conf
  getent passwd; getent group
  systemctl list-unit-files --no-pager --no-legend
  local skip=(-path /var/log -o -path /var/cache -o -path '/var/lib/dpkg/*' -o -path '/var/lib/apt/*'
    -o -path '/var/lib/systemd/*' -o -name '.pwd.lock' -o -name '*-' -path '/etc/*' -o -path /etc/ld.so.cache)
  find / -xdev \( "${skip[@]}" \) -prune -o -printf '%M %u:%g %p %l\n' | sort -k 3
  find / -xdev \( "${skip[@]}" \) -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
}

units="agentnet agentnet-gateway agentnet-registry"
b="ip netns exec b env AGENTNET_STATE=/tmp/b"
on_b() { $b "$@"; }
main_pid() { systemctl show -p MainPID --value "$1"; }
hello() { [ "$(curl -sf --max-time 5 http://b.acme.agent:8000/)" = hello ]; }
install_package() { apt-get install -qq -y -o Dpkg::Use-Pty=0 /shared/agentnet.deb; }

ip link set lo up
touch /etc/resolv.conf
mkdir -p /home/user
echo "mine" >/home/user/notes
host_is >/tmp/before

install_package
# shellcheck disable=SC2086 # words
[ "$(systemctl is-enabled $units | sort -u)" = disabled ]
# shellcheck disable=SC2086 # words
[ "$(systemctl is-active $units | sort -u)" = inactive ]
ls /usr/share/man/man1/agentnet-join.1*
grep -q ':/nonexistent:' <<<"$(getent passwd agentnet)"

# A second host, at the other end of a cable.
ip netns add b
ip link add cable type veth peer name eth0 netns b
ip address add 10.77.0.1/24 dev cable
ip link set cable up
ip -n b address add 10.77.0.2/24 dev eth0
ip -n b link set eth0 up
ip -n b link set lo up

agentnet registry init --dir /var/lib/agentnet-registry --listen 10.77.0.1:8443
systemctl enable --now agentnet-registry
# shellcheck disable=SC2154,SC2086 # of the prelude; two words
agentnet gateway init --dir /var/lib/agentnet-gateway --listen 10.77.0.1:16201 $operator
systemctl enable --now agentnet-gateway
# shellcheck disable=SC2086 # two words
agentnet network create acme $operator
agentnet token create acme --name a --name b --uses 2 --out /tmp/token
agentnet join --token-file /tmp/token --name a
systemctl enable --now agentnet
on_b agentnet join --token-file /tmp/token --name b
$b agentnet up --dns none >/tmp/b.log 2>&1 &
node=$!
# The least of a web server.
$b python3 -c '
import socket
server = socket.create_server(("::", 8000), family=socket.AF_INET6)
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello\n")
    client.close()
' &
web=$!
until_so sh -c "$b agentnet status | grep -q connected"
until_so agentnet trust request b.acme.agent
until_so on_b agentnet trust approve a.acme.agent --allow tcp/8000
until_so hello
getent hosts b.acme.agent

systemctl restart agentnet
until_so hello
pid=$(main_pid agentnet)
kill -9 "$pid"
until_so is_back agentnet "$pid"
until_so hello

# The same again is an upgrade: services are started anew, settings stay.
echo '# of the administrator' >>/etc/agentnet/agentnet.toml
pid=$(main_pid agentnet)
dpkg --install /shared/agentnet.deb
is_back agentnet "$pid"
grep -q administrator /etc/agentnet/agentnet.toml
until_so hello

# Removed, it is gone but for its settings and state; installed anew, it is the agent it was.
apt-get remove -qq -y -o Dpkg::Use-Pty=0 agentnet
for unit in $units; do
  [ "$(systemctl is-active "$unit")" = inactive ]
done
[ ! -e /usr/bin/agentnet ] && [ ! -e /run/agentnet ] && [ -e /var/lib/agentnet ]
if getent hosts b.acme.agent; then exit 1; fi
if ip -o link | grep -q agn; then exit 1; fi
mkdir -p /etc/apparmor.d/abi
touch /etc/apparmor.d/abi/4.0
install_package
grep -q 'userns,' /etc/apparmor.d/agentnet
systemctl start agentnet-registry agentnet-gateway agentnet
until_so hello

apt-get purge -qq -y -o Dpkg::Use-Pty=0 agentnet
kill "$web" "$node"
wait "$web" "$node" || true
[ ! -e /etc/apparmor.d/agentnet ]
rm -r /etc/apparmor.d/abi
rmdir /etc/apparmor.d 2>/dev/null || true
ip link del cable
ip netns del b
rm -r /tmp/b
host_is >/tmp/after
diff /tmp/before /tmp/after
echo "all is as before"
