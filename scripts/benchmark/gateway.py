"""What a gateway costs by itself: agents are attachments of one process (tests/bench/load/gateway.rs), on a
host of their own behind a cable; the gateway is the real program, whose registry is away."""
import json, os, statistics, subprocess, time

from benchmark.world import W, Host, cable, cpu, resident, wait_for

AT = "10.1.0.1:16201"
AGENTS = "10.64.0.0"
RELAYED = [64, 1400]  # bytes of payload
ATTACHED = 10_000
PAIRS = 1_000
IDLE = 20  # seconds


class Gateway:
    """A gateway, and the host of all agents."""

    def __init__(self, tools, name):
        self.binary, self.load = tools["agentnet"], tools["load"]
        self.host, self.others = Host(f"g-{name}"), Host(f"l-{name}")
        self.home, self.name, self.process = f"{W}/g-{name}", name, None
        cable(self.host, self.others, ("10.1.0.1/24", "10.1.0.2/24"), "g" + name[:6])
        self.host.run(f"ip route add {AGENTS}/10 via 10.1.0.2")
        self.others.run(f"ip route add local {AGENTS}/10 dev lo")
        subprocess.run([self.load, "gateway", self.home, AT], check=True, capture_output=True)

    def start(self):
        config = f"{self.home}/gateway.toml"
        self.process = self.host.start(f"{self.binary} gateway serve --quiet --config {config}", f"g-{self.name}")
        wait_for("the gateway listens", lambda: ":16201 " in self.host.run("ss -lun"))

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        for host in [self.host, self.others]:
            host.holder.kill()
            host.holder.wait()

    def status(self):
        return json.loads(self.host.run(f"{self.binary} gateway status --json --config {self.home}/gateway.toml"))

    def ask(self, line):
        return json.loads(self.others.run(f"ulimit -n $(ulimit -Hn) && {self.load} {line}"))


def relayed(tools, size, seconds, run):
    """Packets and bits that one core of a gateway forwards in a second, and what a gigabyte takes."""
    gateway = Gateway(tools, f"r{size}-{run}")
    gateway.start()
    begun, wall = cpu([gateway.process.pid]), time.monotonic()
    said = gateway.ask(f"relay {AT} {AGENTS} {size} {seconds}")
    spent, wall = cpu([gateway.process.pid]) - begun, time.monotonic() - wall
    frames = gateway.status()["forwarded_frames"]
    gateway.stop()
    return {"packets per core": frames / spent, "Gb/s per core": frames * size * 8 / spent / 1e9,
            "CPU s per GB": spent / (frames * size / 1e9), "core used": spent / wall,
            "arrived %": 100 * said["received"] / max(frames, 1)}


def attached(tools, run):
    """Memory and idle CPU of a gateway with many attachments."""
    gateway = Gateway(tools, f"a{run}")
    gateway.start()
    empty = resident(gateway.process.pid)
    load = gateway.others.ask(f"ulimit -n $(ulimit -Hn) && exec {gateway.load} attached {ATTACHED} {AT} {AGENTS} {IDLE + 15}")
    begun = cpu([gateway.process.pid])
    told = json.loads(load.stdout.readline())
    attaching = cpu([gateway.process.pid]) - begun
    time.sleep(5)
    begun = cpu([gateway.process.pid])
    time.sleep(IDLE)
    idle = (cpu([gateway.process.pid]) - begun) / IDLE
    memory = resident(gateway.process.pid)
    there = gateway.status()["attached"]
    load.stdout.readline()
    load.wait()
    gateway.stop()
    assert there == told["attached"] == ATTACHED, (there, told)
    return {"MB empty": empty, "MB with all": memory, "KB each": (memory - empty) * 1000 / ATTACHED,
            "CPU % at rest": idle * 100, "ms CPU to attach one": attaching * 1000 / ATTACHED}


def restarted(tools, run):
    """How long pairs are without each other when their gateway is killed and started again."""
    gateway = Gateway(tools, f"p{run}")
    # It is the child of the load here, so they are on one host.
    gateway.others.run("ip addr add 10.1.0.1/32 dev lo")
    said = gateway.ask(f"restart {PAIRS} {AT} {AGENTS} {gateway.home} {gateway.binary}")
    gateway.stop()
    return {"s until the first is back": said["first"], "s until half are": said["median"],
            "s until 99 % are": said["p99"], "s until the last is": said["last"]}


def measure(tools, runs, seconds):
    """Returns all figures: what, and of each run the values."""
    figures = {}
    for run in range(runs):
        for size in RELAYED:
            figures.setdefault(f"relay, {size} B", []).append(relayed(tools, size, seconds, run))
        figures.setdefault(f"{ATTACHED} attachments", []).append(attached(tools, run))
        figures.setdefault(f"restart with {PAIRS} pairs", []).append(restarted(tools, run))
    return figures


def table(figures):
    """Writes figures as a table of medians and spreads."""
    lines = ["| case | figure | median | least | most |", "|---|---|---:|---:|---:|"]
    for case, runs in figures.items():
        for name in runs[0]:
            values = [run[name] for run in runs]
            shown = [f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
                     for value in (statistics.median(values), min(values), max(values))]
            lines.append(f"| {case} | {name} | {' | '.join(shown)} |")
    return "\n".join(lines)
