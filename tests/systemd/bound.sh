# shellcheck shell=bash
# Agents of one host that are bound to users and to a service: who uses them, and who does not.
cat >/tmp/net.py <<'P'
import socket, sys, time
what, args = sys.argv[1], sys.argv[2:]
six = socket.AF_INET6
if what == "serve":  # PORT: says to everybody who they are
    server = socket.create_server(("::", int(args[0])), family=six)
    while True:
        client, who = server.accept()
        client.sendall(b"hello %s\n" % who[0].encode())
        client.close()
elif what == "get":  # HOST PORT [SOURCE]
    source = (args[2], 0) if len(args) > 2 else None
    with socket.create_connection((args[0], int(args[1])), 5, source) as client:
        print(client.recv(100).decode().strip())
elif what == "hear":  # PORT: counts datagrams until there was none for 3 s
    server = socket.socket(six, socket.SOCK_DGRAM)
    server.bind(("::", int(args[0])))
    server.settimeout(20)
    heard = 0
    try:
        while True:
            server.recv(100)
            heard += 1
            server.settimeout(3)
    except TimeoutError:
        print(heard)
elif what == "send":  # HOST PORT: datagrams for a while
    client = socket.socket(six, socket.SOCK_DGRAM)
    to = socket.getaddrinfo(args[0], int(args[1]), six, socket.SOCK_DGRAM)[0][4]
    client.connect(to)
    for _ in range(20):
        try:
            client.send(b"x")
        except OSError as error:
            print(error)
        time.sleep(0.1)
elif what == "device":  # DEVICE HOST PORT: by a device that is not ours
    client = socket.socket(six)
    client.settimeout(5)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, args[0].encode())
    client.connect((args[1], int(args[2])))
P
as() {
  local user=$1
  shift
  setpriv --reuid "$user" --regid "$user" --clear-groups env -C / HOME=/ python3 /tmp/net.py "$@"
}
# fails WHY COMMAND...: it must fail, and say so.
fails() {
  local why=$1 said
  shift
  if said=$("$@" 2>&1); then return 1; fi
  grep -q "$why" <<<"$said"
}
routing() { ip -6 rule; ip -6 route show table all | sed '/fe80\|ff00/d'; }

serve
for user in alice bob carol; do useradd --no-create-home "$user"; done
# shellcheck disable=SC2154,SC2086 # of the prelude; two words
agentnet network create acme $operator
agentnet token create acme --name '*' --uses 9 --out /tmp/token
agentnet join --token-file /tmp/token --name open
systemctl start agentnet
until_so sh -c 'agentnet agent list | grep -q "open.acme.agent.*connected"'
routing >/tmp/before
add() {
  agentnet agent add --token-file /tmp/token --name "$@"
  until_so sh -c "agentnet agent list | grep -q '$1.acme.agent.*connected'"
}
add alice --bind-user alice
add bob --bind-user bob
add svc --bind-cgroup /system.slice/svc.service
agentnet agent list
agentnet agent list | grep -q 'bob.acme.agent.* host, user [0-9]'
agentnet agent list | grep -q 'svc.acme.agent.* host, cgroup /system.slice/svc.service'
agentnet status | grep -q 'for cgroup /system.slice/svc.service alone'
fails 'cannot be used with' agentnet agent add --token-file /tmp/token --name no --apart --bind-user bob
fails 'begins with /' agentnet agent add --token-file /tmp/token --name no --bind-cgroup a.slice
address() { getent ahostsv6 "$1.acme.agent" | head -n 1 | cut -d' ' -f1; }
device() { ip -o -6 address | grep "$(address "$1")/" | cut -d' ' -f2; }
trust() {
  agentnet trust request "$2" --agent "$1"
  until_so sh -c "agentnet trust pending --agent $2 | grep -q $1.acme.agent"
  agentnet trust approve "$1" --agent "$2" --allow "$3"
}
trust alice bob tcp/8000,udp/5000
trust alice svc tcp/8001-8002
trust svc bob tcp/8000
ip -6 rule

# Bob serves, and Alice's programs reach him as Alice, by their own agent and with nothing said to them.
as bob serve 8000 &
until_so sh -c 'ss -ltn | grep -q :8000'
[ "$(as alice get bob.acme.agent 8000)" = "hello $(address alice)" ]
[ "$(as bob get bob.acme.agent 8000)" = "hello $(address bob)" ]
# Carol's are somebody else, whom Bob has not agreed to: not past the overlay either, by no address and no device.
fails . as carol get bob.acme.agent 8000
fails 'Permission denied' as carol get bob.acme.agent 8000 "$(address alice)"
fails 'Permission denied\|unreachable' as carol device "$(device alice)" "$(address bob)" 8000
fails . as bob get alice.acme.agent 8000

# What is for Bob is heard by his programs alone.
as carol hear 5000 >/tmp/carol &
hears=$!
until_so sh -c 'ss -lun | grep -q :5000'
as alice send bob.acme.agent 5000
wait $hears
[ "$(cat /tmp/carol)" = 0 ]
agentnet status | grep -q socket_owner
as bob hear 5000 >/tmp/bob &
hears=$!
until_so sh -c 'ss -lun | grep -q :5000'
as alice send bob.acme.agent 5000
wait $hears
[ "$(cat /tmp/bob)" -ge 15 ]

# A service, by its control group; it takes its agent's address itself, since another agent is everybody's.
systemd-run --quiet --unit=svc --uid=carol python3 /tmp/net.py serve 8001
until_so sh -c 'ss -ltn | grep -q :8001'
[ "$(as alice get svc.acme.agent 8001)" = "hello $(address alice)" ]
as carol serve 8002 &
until_so sh -c 'ss -ltn | grep -q :8002'
fails . as alice get svc.acme.agent 8002
fails 'Permission denied' as carol get bob.acme.agent 8000 "$(address svc)"
fails 'Permission denied' python3 /tmp/net.py get "$(address bob)" 8000 "$(address svc)"
systemctl stop svc
in_svc() { systemd-run --quiet --unit=svc --uid=carol --pipe --wait --collect python3 /tmp/net.py "$@"; }
[ "$(in_svc get bob.acme.agent 8000 "$(address svc)")" = "hello $(address svc)" ]
# Where no agent is everybody's the service need not say anything, and others are told that they may not.
agentnet agent remove open
[ "$(in_svc get bob.acme.agent 8000)" = "hello $(address svc)" ]
fails 'Permission denied' as carol get bob.acme.agent 8000
[ "$(as alice get bob.acme.agent 8000)" = "hello $(address alice)" ]

# After a kill all is as it was.
node=$(systemctl show -p MainPID --value agentnet)
kill -9 "$node"
until_so is_back agentnet "$node"
until_so sh -c 'agentnet agent list | grep -q "alice.acme.agent.*connected"'
until_so sh -c 'agentnet agent list | grep -q "bob.acme.agent.*connected"'
[ "$(as alice get bob.acme.agent 8000)" = "hello $(address alice)" ]
fails 'Permission denied' as carol get bob.acme.agent 8000 "$(address alice)"
[ "$(ip -6 rule | sort | uniq -d)" = "" ]

# Whose an agent is changes by adding it anew; it is the same one.
before=$(address alice)
agentnet agent remove alice
add alice
[ "$(address alice)" = "$before" ]
until_so as carol get bob.acme.agent 8000
[ "$(as carol get bob.acme.agent 8000)" = "hello $before" ]
agentnet agent remove alice
add alice --bind-user alice
until_so as alice get bob.acme.agent 8000
fails 'Permission denied' as carol get bob.acme.agent 8000

# Nothing is left of it, with the agents and with the daemon.
agentnet agent remove alice
agentnet agent remove bob
add open
agentnet agent remove svc
# But for its number and address the device is as the first was; we put the kernel's route back by another metric.
alike() {
  sed -E 's/agn[0-9]+/agn/; s/fd[0-9a-f]{2}:[0-9a-f:]+/A/g; s/proto kernel metric 0/proto 97 metric 1024/; s/metric 102[0-9]/metric 1024/' | sort
}
diff <(alike </tmp/before) <(routing | alike)
add alice --bind-user alice
systemctl stop agentnet
[ "$(ip -6 rule | wc -l)" = 2 ]
echo "each has its own"
