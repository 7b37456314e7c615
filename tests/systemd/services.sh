# shellcheck shell=bash
# What the host is beside files in /var, /run and /etc/machine-id.
host_is() {
  ip -o addr show up; ip route; ip -6 route; cat /etc/resolv.conf
  find /etc /usr /root -xdev -newer /shared/run -not -name '*.cache' 2>/dev/null | sort
  ls /run/agentnet 2>/dev/null || true
}
touch /etc/resolv.conf
ip link set lo up
host_is >/tmp/before

serve
[ "$(ps -o user= -p "$(systemctl show -p MainPID --value agentnet-gateway)")" = agentnet ]
[ "$(ps -o user= -p "$(systemctl show -p MainPID --value agentnet-registry)")" = agentnet ]
[ "$(stat -c '%U %a' /var/lib/agentnet-gateway)" = "agentnet 700" ]
agentnet network create acme --operator-token-file /var/lib/agentnet-registry/operator.token
agentnet token create acme --name '*' --uses 9 --out /tmp/token
agentnet join --token-file /tmp/token --name a

# Ready means that the address and the name answer.
systemctl start agentnet
node=$(systemctl show -p MainPID --value agentnet)
[ "$(ps -o user= -p "$node")" = agentnet ]
# CAP_NET_ADMIN and CAP_NET_BIND_SERVICE, and no way to more.
grep -q '^CapBnd:.*0000000000001400$' "/proc/$node/status"
grep -q '^CapEff:.*0000000000001400$' "/proc/$node/status"
grep -q '^NoNewPrivs:.*1$' "/proc/$node/status"
if journalctl -u 'agentnet*' --no-pager | grep -E 'No landlock|more rights'; then exit 1; fi
getent hosts a.acme.agent
address=$(getent hosts a.acme.agent | cut -d' ' -f1)
ping -6 -c 1 "$address"
until_so sh -c 'agentnet status | grep -q connected'
# The least of a web server.
python3 -c '
import socket
server = socket.create_server(("::", 8000), family=socket.AF_INET6)
client, _ = server.accept()
client.recv(4096)
client.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello\n")
' &
until_so sh -c 'ss -ltn | grep -q :8000'
[ "$(curl -sf --max-time 5 http://a.acme.agent:8000/)" = hello ]
agentnet gateway status --config /var/lib/agentnet-gateway/gateway.toml

# An agent apart from the host, for programs of one user.
agentnet agent add --token-file /tmp/token --name c --apart --user nobody
as_nobody() { setpriv --reuid nobody --regid nogroup --clear-groups env -C / HOME=/ agentnet "$@"; }
until_so sh -c 'agentnet agent list | grep -q "c.acme.agent.*connected"'
[ "$(as_nobody run --agent c -- id -un)" = nobody ]
as_nobody run --agent c -- getent hosts c.acme.agent
as_nobody run -- ip -o -6 addr show scope global | grep -q agn
if as_nobody run --agent a -- true; then exit 1; fi
{ as_nobody run --agent a -- true 2>&1 || true; } | grep 'not for programs of your user'
if as_nobody agent remove c; then exit 1; fi
if as_nobody run --agent c -- agentnet trust auto add --from "*" --allow any; then exit 1; fi
agentnet agent remove c
getent hosts a.acme.agent

# Settings are read anew while all goes on.
systemctl reload agentnet agentnet-gateway agentnet-registry
for unit in agentnet agentnet-gateway agentnet-registry; do
  until_so sh -c "journalctl -u $unit --no-pager | grep 'Settings read anew'"
done
[ "$(systemctl show -p MainPID --value agentnet)" = "$node" ]
getent hosts a.acme.agent

# Keys and a token that systemd hands over.
mkdir -p /run/credstore
chmod 700 /run/credstore
mv /var/lib/agentnet-gateway/gateway.key /run/credstore/agentnet.gateway-key
mv /var/lib/agentnet-registry/registry.key /run/credstore/agentnet.registry-key
mv /var/lib/agentnet-registry/tls.key /run/credstore/agentnet.registry-tls-key
agentnet token create acme --name b --out /run/credstore/agentnet.join-token
systemctl restart agentnet-registry agentnet-gateway agentnet
until_so sh -c 'agentnet gateway status --config /var/lib/agentnet-gateway/gateway.toml | grep -q "2 agents attached"'
getent hosts b.acme.agent
rm /run/credstore/agentnet.join-token

# The same, encrypted by the host's key.
agentnet token create acme --name e --out /run/e.token
systemd-creds encrypt --name=agentnet.join-token /run/e.token /run/e.encrypted
rm /run/e.token
if grep -q agn1_ /run/e.encrypted; then exit 1; fi
mkdir -p /run/systemd/system/agentnet.service.d
printf '[Service]\nLoadCredentialEncrypted=agentnet.join-token:/run/e.encrypted\n' \
  >/run/systemd/system/agentnet.service.d/token.conf
systemctl daemon-reload
systemctl restart agentnet
until_so getent hosts e.acme.agent
rm -r /run/systemd/system/agentnet.service.d /run/e.encrypted
systemctl daemon-reload

systemctl restart agentnet
[ "$(getent hosts a.acme.agent | cut -d' ' -f1)" = "$address" ]
for unit in agentnet-gateway agentnet-registry agentnet; do
  pid=$(systemctl show -p MainPID --value "$unit")
  kill -9 "$pid"
  until_so is_back "$unit" "$pid"
done
until_so getent hosts a.acme.agent

# The journal has the facts in fields of their own.
has_field() { journalctl -u agentnet -o json --no-pager | grep "\"$1\":\"$2" >/dev/null; }
until_so has_field AGENTNET_CODE registry_lost
has_field AGENTNET_REASON ..
has_field AGENTNET_DEVICE agn
has_field PRIORITY 4

systemctl stop agentnet agentnet-gateway agentnet-registry
for unit in agentnet-gateway agentnet-registry agentnet; do
  [ "$(systemctl show -p Result --value "$unit")" = success ]
done
rm -rf /tmp/token
host_is >/tmp/after
diff /tmp/before /tmp/after
echo "all is as before"
