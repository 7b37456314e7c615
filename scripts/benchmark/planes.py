"""The planes: agentnet in its ways, its rivals, and no tunnel at all."""
import json, os, platform, re, subprocess, time

from benchmark.world import Host, W, cable, wait_for

# Name: data channel suite, path, MTU of the underlay.
AGENTNET = {"aes": ("aes-256-gcm", "auto", 1500), "chacha": ("chacha20-poly1305", "auto", 1500),
            "relay": ("aes-256-gcm", "relay", 1500), "jumbo": ("aes-256-gcm", "auto", 9000)}


class Plane:
    """Two hosts that reach each other at `address`, and the processes that make it so."""

    # Where datagrams of strangers are sent.
    port = None

    def __init__(self, name):
        self.name, self.processes = name, []
        self.a, self.b = Host(name + "-a"), Host(name + "-b")
        cable(self.a, self.b, ("10.0.0.1/24", "10.0.0.2/24"), "v")

    def pids(self):
        return [process.pid for process in self.processes]

    def wait_for_pong(self):
        wait_for(f"{self.name}: they talk",
                 lambda: " 0% packet loss" in self.a.run(f"ping -c 1 -W 1 {self.address}", check=False))


class Without(Plane):
    version = platform.release()

    def __init__(self):
        super().__init__("none")
        self.address = "10.0.0.2"


class WireGuard(Plane):
    port = 51820

    def __init__(self, name, path):
        super().__init__(name)
        said = subprocess.run([path, "--version"], capture_output=True, text=True)
        self.version = (said.stdout + said.stderr).strip().split("\n")[0]
        os.makedirs("/run/wireguard", exist_ok=True)
        keys = [key_pair() for _ in "ab"]
        self.tag = re.sub("[^a-z]", "", name)[:8]
        self.path = path
        for n, host in enumerate([self.a, self.b]):
            device = f"{self.tag}{'ab'[n]}"
            self.processes.append(self.device(host, device))
            with open(f"{W}/{device}.key", "w") as file:
                file.write(keys[n][0])
            host.run(f"wg set {device} listen-port {self.port} private-key {W}/{device}.key peer {keys[1 - n][1]} "
                     f"allowed-ips fd00::/64 endpoint 10.0.0.{2 - n}:{self.port}")
            host.run(f"ip addr add fd00::{n + 1}/64 dev {device} nodad && ip link set {device} mtu 1420 up")
        self.address = "fd00::2"
        self.wait_for_pong()

    def device(self, host, name):
        flags = "--foreground --disable-drop-privileges" if "boringtun" in self.name else "-f"
        process = host.start(f"env WG_SUDO=1 {self.path} {flags} {name}", name)
        wait_for(f"{self.name} starts", lambda: os.path.exists(f"/run/wireguard/{name}.sock"))
        return process

    def with_peers(self, count):
        """Starts a process that knows `count` peers."""
        host = Host(self.name + "-many")
        device = self.tag + "m"
        process = self.device(host, device)
        with open(f"{W}/{device}.conf", "w") as file:
            file.write(f"[Interface]\nPrivateKey = {key_pair()[0]}\n")
            for n in range(count):
                file.write(f"[Peer]\nPublicKey = {key_pair()[1]}\nAllowedIPs = fd00::{n + 2:x}/128\n")
        host.run(f"wg setconf {device} {W}/{device}.conf")
        return process


def key_pair():
    secret = subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout.strip()
    public = subprocess.run(["wg", "pubkey"], input=secret, capture_output=True, text=True, check=True).stdout.strip()
    return secret, public


class Nebula(Plane):
    port = 4242

    def __init__(self, name, path):
        super().__init__(name)
        self.version = subprocess.run([path, "-version"], capture_output=True, text=True).stdout.strip()
        home, cert = f"{W}/{name}", path + "-cert"
        os.makedirs(home)
        run = lambda line: subprocess.run(f"cd {home} && {line}", shell=True, check=True)
        run(f"{cert} ca -name bench")
        for n, host in enumerate([self.a, self.b]):
            side = "ab"[n]
            run(f"{cert} sign -name {side} -ip 192.168.77.{n + 1}/24")
            settings = {"pki": {"ca": f"{home}/ca.crt", "cert": f"{home}/{side}.crt", "key": f"{home}/{side}.key"},
                        "static_host_map": {f"192.168.77.{2 - n}": [f"10.0.0.{2 - n}:{self.port}"]},
                        "lighthouse": {"am_lighthouse": False}, "listen": {"host": "0.0.0.0", "port": self.port},
                        "tun": {"dev": f"neb{side}", "mtu": 1420},
                        "firewall": {"outbound": [{"port": "any", "proto": "any", "host": "any"}],
                                     "inbound": [{"port": "any", "proto": "any", "host": "any"}]}}
            # JSON is YAML too.
            with open(f"{home}/{side}.yml", "w") as file:
                json.dump(settings, file)
            self.processes.append(host.start(f"{path} -config {home}/{side}.yml", f"{name}-{side}"))
        self.address = "192.168.77.2"
        self.wait_for_pong()


class Tinc(Plane):
    port = 655

    def __init__(self, name, path):
        super().__init__(name)
        self.version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
        for n, side in enumerate("ab"):
            home = f"{W}/{name}-{side}"
            os.makedirs(f"{home}/hosts")
            with open(f"{home}/tinc.conf", "w") as file:
                file.write(f"Name = {side}\nInterface = tinc{side}\n" + ("ConnectTo = b\n" if side == "a" else ""))
            with open(f"{home}/hosts/{side}", "w") as file:
                file.write(f"Address = 10.0.0.{n + 1}\nSubnet = 10.77.0.{n + 1}/32\n")
            with open(f"{home}/tinc-up", "w") as file:
                file.write(f"#!/bin/sh\nip addr add 10.77.0.{n + 1}/24 dev $INTERFACE\nip link set $INTERFACE up\n")
            os.chmod(f"{home}/tinc-up", 0o755)
            subprocess.run([path, "-c", home, "-K", "2048"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
        for one, other in ["ab", "ba"]:
            with open(f"{W}/{name}-{one}/hosts/{one}") as file, open(f"{W}/{name}-{other}/hosts/{one}", "w") as copy:
                copy.write(file.read())
        for side, host in [("b", self.b), ("a", self.a)]:
            home = f"{W}/{name}-{side}"
            self.processes.append(host.start(f"{path} -c {home} -D --pidfile={home}/pid", f"{name}-{side}"))
        self.address = "10.77.0.2"
        self.wait_for_pong()


class Yggdrasil(Plane):
    port = 7700

    def __init__(self, name, path):
        super().__init__(name)
        dpkg = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "yggdrasil"], capture_output=True, text=True)
        self.version = dpkg.stdout or "of unknown version"
        # Who listens first: it dials again only after a minute.
        for side, host in [("b", self.b), ("a", self.a)]:
            made = subprocess.run([path, "-genconf", "-json"], capture_output=True, text=True, check=True)
            settings = json.loads(made.stdout)
            settings.update({"IfName": f"ygg{side}", "MulticastInterfaces": [], "AdminListen": "none",
                             "Listen": [f"tcp://10.0.0.2:{self.port}"] if side == "b" else [],
                             "Peers": [f"tcp://10.0.0.2:{self.port}"] if side == "a" else []})
            file_name = f"{W}/{name}-{side}.conf"
            with open(file_name, "w") as file:
                json.dump(settings, file)
            self.processes.append(host.start(f"{path} -useconffile {file_name}", f"{name}-{side}"))
            if side == "b":
                wait_for("yggdrasil listens", lambda: f":{self.port} " in host.run("ss -ltn"))
                said = subprocess.run([path, "-useconffile", file_name, "-address"], capture_output=True, text=True, check=True)
                self.address = said.stdout.strip()
        self.wait_for_pong()


class Agentnet(Plane):
    port = 16200

    def __init__(self, name, binary):
        super().__init__(name)
        self.suite, self.path, mtu = AGENTNET[name]
        for host, end in [(self.a, "v0"), (self.b, "v1")]:
            host.run(f"ip link set {end} mtu {mtu}")
        self.binary, self.home, g = binary, f"{W}/{name}", Host(name + "-g")
        self.g = g
        self.version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.strip()
        g.run("ip addr add 10.9.9.9/32 dev lo")
        for n, host in enumerate([self.a, self.b]):
            cable(host, g, (f"10.0.{n + 1}.1/24", f"10.0.{n + 1}.2/24"), f"g{n}")
            host.run(f"ip route add 10.9.9.9 via 10.0.{n + 1}.2")
        os.makedirs(self.home)
        self.serve()
        env = f"env AGENTNET_STATE={self.home}/owner"
        g.run(f"{env} {binary} network create acme --operator-token-file {self.home}/registry/operator.token")
        g.run(f"{env} {binary} token create acme --name '*' --uses 10 --out {self.home}/token")
        self.flags = [f"--state {self.home}/{side}" for side in "ab"]
        for n, host in enumerate([self.a, self.b]):
            host.run(f"{binary} join --token-file {self.home}/token --name {'ab'[n]} {self.flags[n]}")
        self.up()
        a, b = self.flags
        self.a.run(f"{binary} trust request b.acme.agent {a}")
        wait_for("the request arrives", lambda: "a.acme" in self.b.run(f"{binary} trust pending --json {b}"))
        self.b.run(f"{binary} trust approve a.acme.agent --allow any {b}")
        status = json.loads(self.b.run(f"{binary} status --json {b}"))
        self.address = status["agents"][0]["address"]
        self.settle()

    def serve(self):
        """Starts registry and gateway."""
        binary, g, home, name = self.binary, self.g, self.home, self.name
        g.run(f"{binary} registry init --dir {home}/registry --listen 10.9.9.9:8443")
        self.registry = g.start(f"{binary} registry serve --config {home}/registry/registry.toml", name + "-registry")
        wait_for("the registry is ready", lambda: ":8443 " in g.run("ss -ltn"))
        g.run(f"{binary} gateway init --dir {home}/gateway --listen 10.9.9.9:16201 "
              f"--operator-token-file {home}/registry/operator.token")
        self.gateway = g.start(f"{binary} gateway serve --config {home}/gateway/gateway.toml", name + "-gateway")
        wait_for("the gateway is ready", lambda: ":16201 " in g.run("ss -lun"))

    def up(self):
        """Starts both nodes."""
        self.processes = [self.gateway]
        # What both processors do fast, or what is asked for.
        suite = "auto" if self.suite.startswith("aes") else self.suite
        for n, host in enumerate([self.a, self.b]):
            up = (f"env AGENTNET_CHANNEL_SUITE={suite} {self.binary} up {self.flags[n]} "
                  f"--dns none --path {self.path}")
            self.processes.append(host.start(up, f"{self.name}-{'ab'[n]}"))
        for n, host in enumerate([self.a, self.b]):
            wait_for("the node is attached",
                     lambda: '"connected"' in host.run(f"{self.binary} status --json {self.flags[n]}", check=False))

    def peers(self):
        return self.a.run(f"{self.binary} peers --json {self.flags[0]}")

    def settle(self):
        """Waits until data takes its final way."""
        self.wait_for_pong()
        wanted = [self.suite] + (["direct"] if self.path == "auto" else [])

        def is_settled():
            self.a.run(f"ping -c 2 -i 0.2 {self.address}", check=False)
            said = self.peers()
            return all(word in said for word in wanted)

        wait_for(f"data is sealed with {self.suite}", is_settled)

    def restart(self):
        """Starts both nodes anew; returns the time of the first answer, and until the path is direct, in ms."""
        for process in self.processes[1:]:
            process.terminate()
            process.wait(timeout=30)
        self.up()
        begun = time.monotonic()
        first = self.a.ask(f"ping -n -c 1 -W 10 {self.address}")
        wait_for("the path is direct", lambda: '"direct"' in self.peers())
        direct = (time.monotonic() - begun) * 1000
        said = re.search(r"time=([0-9.]+) ms", first.communicate()[0])
        self.settle()
        return float(said.group(1)) if said else None, direct

    def with_peers(self, count, load):
        """Starts a node that knows `count` peers, and another host from which they come."""
        node, others = Host(self.name + "-many"), Host(self.name + "-others")
        cable(node, others, ("10.1.0.1/24", "10.1.0.2/24"), "m")
        node.run("ip route add 10.64.0.0/14 via 10.1.0.2")
        others.run("ip route add local 10.64.0.0/14 dev lo")
        state = f"{self.home}/many"
        subprocess.run([load, "state", state, str(count)], check=True, capture_output=True)
        process = node.start(f"{self.binary} up --state {state} --dns none", self.name + "-many")
        wait_for("the node listens", lambda: f":{self.port} " in node.run("ss -lun"))
        return process, others
