# shellcheck shell=bash
# `agentnet run` for a user with limits, as a login or a service has them (setrlimit(2), pids.max of its cgroup).
serve
agentnet network create acme --operator-token-file /var/lib/agentnet-registry/operator.token
agentnet token create acme --name '*' --uses 99 --out /token
chmod 644 /token
useradd -m someone

# as_someone LIMIT... -- COMMAND...: runs it as a user of its own under properties of systemd.exec(5).
as_someone() {
  local properties=()
  while [ "$1" != -- ]; do
    properties+=(-p "$1")
    shift
  done
  shift
  systemd-run --quiet --wait --pipe --collect --uid=someone -E HOME=/home/someone -p KillMode=process "${properties[@]}" "$@"
}
limits="LimitNPROC TasksMax"
# shellcheck disable=SC2016 # for that shell
if ! as_someone TasksMax=77 -- sh -c 'grep -x 77 "/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/pids.max"'; then
  echo "SKIPPED: no cgroup here limits processes"
  limits=LimitNPROC
fi
none_left() { ! pgrep -u someone >/dev/null; }
devices() { ip -o link | wc -l; }
before=$(devices)

# However few processes it may have, it runs or says why not, and leaves nothing.
as_someone -- agentnet run --token-file /token --name first -- true
for limit in $limits; do
  refused=0
  for count in $(seq 1 40); do
    code=0
    as_someone "$limit=$count" -- agentnet run --token-file /token --name "a$count" -- sh -c 'true & wait' >/tmp/said 2>&1 || code=$?
    cat /tmp/said
    until_so none_left
    if [ "$code" = 0 ]; then break; fi
    # Before it could begin at all, systemd and the shell say so.
    if ! grep agentnet: /tmp/said; then continue; fi
    [ "$code" = 125 ] || [ "$code" = 126 ]
    grep 'code: too_many_processes' /tmp/said
    grep 'hint: end other processes' /tmp/said
    refused=$((refused + 1))
  done
  echo "$limit: runs with $count, refused $refused times"
  [ "$code" = 0 ]
  [ "$refused" -gt 3 ]
done

# A program that multiplies, and whoever ends makes room for another: all of it ends with `agentnet run`.
cat >/bomb <<'EOF'
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
EOF
# bombs LIMIT: has one started that has reached its limit.
bombs() {
  as_someone "$1" -- agentnet run --token-file /token --name "${2,,}" -- python3 /bomb >/tmp/bomb 2>&1 &
  until_so are_many
}
are_many() { [ "$(pgrep -c -u someone)" -gt 150 ]; }
of_run() { pgrep -u someone -f '^[^ ]*agentnet run'; }
for limit in $limits; do
  for signal in TERM KILL; do
    bombs "$limit=200" "bomb-$limit-$signal"
    kill "-$signal" "$(of_run)"
    until_so none_left
    wait
  done
  bombs "$limit=200" "bomb-$limit-inside"
  kill -KILL "$(pgrep -u someone -f '^[^ ]*agentnet inside')"
  until_so none_left
  wait
  grep 'code: ended_inside' /tmp/bomb
done
[ "$(devices)" = "$before" ]
echo "nothing is left"
