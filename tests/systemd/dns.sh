# shellcheck shell=bash
# What the scripts about DNS share: a host with a link, nameservers that say whom they were asked for, and a node
# that runs as user agentnet.

# install NAME: installs the packages that scripts/systemd-tree put by for this.
install() {
  # Services start as they would on any host.
  rm -f /usr/sbin/policy-rc.d
  DEBIAN_FRONTEND=noninteractive dpkg --install "/debs/$1"/*.deb >/shared/install.log 2>&1 ||
    { tail -n 30 /shared/install.log; return 1; }
}

# nameserver ADDRESS ANSWER: answers every question for an address with ANSWER, and writes down what was asked.
nameserver() {
  ip addr add "$1/32" dev lo
  python3 - "$1" "$2" <<'PY' &
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
answer = socket.inet_aton(sys.argv[2])
while True:
    query, client = server.recvfrom(4096)
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    question = query[12:at + 5]
    with open("/tmp/asked-" + sys.argv[1], "a") as log:
        log.write(".".join(labels) + "\n")
    has = question[-4:-2] == b"\0\1"
    head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if has else b"\0\0") + b"\0\0\0\0"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + answer if has else b""
    server.sendto(head + question + record, client)
PY
}

# A link of the host, of its own network.
link_is_up() {
  ip link set lo up
  ip link add eth0 type veth peer name far
  ip link set far up
  ip link set eth0 up
}

# finds NAME ADDRESS: tells whether the C library finds it there.
finds() { getent ahosts "$1" | grep -q "^$2 "; }

# Makes a network and joins it; `systemctl start agentnet` runs the node as its own user from then on.
node_is_ready() {
  serve
  # shellcheck disable=SC2154,SC2086 # the prelude's, two words
  agentnet network create acme $operator
  agentnet token create acme --name '*' --uses 9 --out /tmp/token
  agentnet join --token-file /tmp/token --name a
}

# The node runs as it should, and programs find it by name and address.
node_is_found() {
  [ "$(ps -o user= -p "$(systemctl show -p MainPID --value agentnet)")" = agentnet ]
  address=$(getent hosts a.acme.agent | cut -d' ' -f1)
  getent hosts "$address" | grep -q 'a.acme.agent$'
  python3 -c 'import socket; print(socket.getaddrinfo("a.acme.agent", 80))' | grep -q "$address"
  if getent ahosts nobody.acme.agent; then return 1; fi
  agentnet dns status
}

# owner_is NAME: tells whether the node found this owner, and set what it wants.
owner_is() {
  agentnet dns status --json >/tmp/dns.json
  grep -q "\"owner\":\"$1\",\"why\":\"[^\"]*\",\"state\":\"applied\"" /tmp/dns.json
}

# killed: ends the node as a crash does, and keeps it from coming back; all that systemd does then is done.
killed() {
  mkdir -p /run/systemd/system/agentnet.service.d
  printf '[Service]\nRestart=no\n' >/run/systemd/system/agentnet.service.d/once.conf
  systemctl daemon-reload
  kill -9 "$(systemctl show -p MainPID --value agentnet)"
  until_so systemctl is-failed -q agentnet
}
