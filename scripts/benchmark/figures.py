"""The figures: what each is, and how it comes about."""
import json, re, subprocess, sys, time

from benchmark.planes import Agentnet, WireGuard
from benchmark.world import Host, cable, cpu, cpu_of_children, resident, switches, wait_for

# Name: unit, whether more is better, what it is.
TESTS = {
    "tcp1": ("Gb/s", True, "one TCP stream"),
    "tcp8": ("Gb/s", True, "eight TCP streams"),
    "tcp1r": ("Gb/s", True, "one TCP stream the other way"),
    "bidir": ("Gb/s", True, "a TCP stream each way, their sum"),
    "cpu_s_per_gb": ("s/GB", False, "CPU seconds of the plane's processes and iperf3 per GB of `tcp1`"),
    "udp64": ("kpps", True, "UDP datagrams of 64 bytes that arrive, out of as many as a sender can send"),
    "udp1380": ("kpps", True, "the same, IPv6 packets of 1380 bytes"),
    "ping_idle_p50": ("us", False, "round trip, 100 a second and nothing else"),
    "ping_idle_p99": ("us", False, "its 99th percentile"),
    "ping_loaded_p50": ("us", False, "round trip beside one TCP stream"),
    "ping_loaded_p99": ("us", False, "its 99th percentile"),
    "tcp1_flooded": ("%", True, "rate of one TCP stream while 200,000 datagrams/s of garbage arrive, of its rate while "
                     "the same flood goes elsewhere"),
    "idle_wakeups": ("1/s", False, "context switches of a process at rest, mean of the plane's processes"),
    "rss": ("MB", False, "resident memory of the largest process, one peer"),
    "rss_known1000": ("MB", False, "resident memory with 1,000 known peers"),
    "rss_active1000": ("MB", False, "resident memory with 1,000 peers that have a session"),
    "setup_first_byte": ("ms", False, "from the first packet to its answer, both nodes just started"),
    "setup_direct": ("ms", False, "from the first packet until the path is direct, seen by a command"),
    "setup_pairs": ("1/s", True, "new sessions a second with consented peers that all come at once"),
}
GARBAGE = 200_000
MANY = 1000
# IPv6 and UDP headers.
HEADERS = 48


class Figures:
    """Measures planes; values by plane's name and test."""

    def __init__(self, given, tools):
        self.seconds, self.wanted, self.load = given.seconds, given.tests or list(TESTS), tools["load"]
        self.rest_seconds = 2 if given.quick else 5
        self.values = {}

    def wants(self, *tests):
        return any(test in self.wanted for test in tests)

    def note(self, plane, test, value):
        if test in self.wanted:
            self.values.setdefault((plane.name, test), []).append(value)

    def measure(self, plane):
        """One run of everything that two hosts show."""
        if self.wants("tcp1", "cpu_s_per_gb"):
            end, spent = self.iperf(plane, "")
            self.note(plane, "tcp1", rate(end, "sum_received"))
            self.note(plane, "cpu_s_per_gb", spent / (end["sum_received"]["bytes"] / 1e9))
        if self.wants("tcp8"):
            self.note(plane, "tcp8", rate(self.iperf(plane, "-P 8")[0], "sum_received"))
        if self.wants("tcp1r"):
            self.note(plane, "tcp1r", rate(self.iperf(plane, "-R")[0], "sum_received"))
        if self.wants("bidir"):
            end, _ = self.iperf(plane, "--bidir")
            self.note(plane, "bidir", rate(end, "sum_received") + rate(end, "sum_received_bidir_reverse"))
        for test, size in [("udp64", 64), ("udp1380", 1380 - HEADERS)]:
            if self.wants(test):
                self.note(plane, test, self.datagrams(plane, size))
        if self.wants("ping_idle_p50", "ping_idle_p99"):
            p50, p99 = self.pings(plane)
            self.note(plane, "ping_idle_p50", p50)
            self.note(plane, "ping_idle_p99", p99)
        if self.wants("ping_loaded_p50", "ping_loaded_p99"):
            p50, p99 = self.loaded_pings(plane)
            self.note(plane, "ping_loaded_p50", p50)
            self.note(plane, "ping_loaded_p99", p99)
        if self.wants("tcp1_flooded") and plane.port and getattr(plane, "path", "") != "relay":
            self.note(plane, "tcp1_flooded", self.flooded(plane))
        if self.wants("setup_first_byte", "setup_direct") and isinstance(plane, Agentnet) and plane.path == "auto":
            first, direct = plane.restart()
            if first is not None:
                self.note(plane, "setup_first_byte", first)
            self.note(plane, "setup_direct", direct)
        if plane.name == "aes" or isinstance(plane, WireGuard):
            self.many(plane)

    def iperf(self, plane, flags):
        """Runs one transfer; returns iperf3's report and the CPU seconds of all processes that took part."""
        server = plane.b.start("iperf3 -s -1", plane.name + "-iperf")
        wait_for("iperf3 listens", lambda: ":5201 " in plane.b.run("ss -ltn"))
        before, begun = cpu(plane.pids()), cpu_of_children()
        client = subprocess.run(plane.a.command(f"iperf3 -c {plane.address} -t {self.seconds} -J {flags}"),
                                capture_output=True, text=True)
        server.wait(timeout=30)
        spent = cpu(plane.pids()) - before + cpu_of_children() - begun
        report = json.loads(client.stdout)
        if "error" in report:
            sys.exit(f"bench: {plane.name}: iperf3: {report['error']}")
        return report["end"], spent

    def datagrams(self, plane, size):
        """Returns how many thousand datagrams arrive each second."""
        sink = plane.b.ask(f"{self.load} sink [::]:5202")
        wait_for("the sink listens", lambda: ":5202 " in plane.b.run("ss -lun"))
        to = f"[{plane.address}]" if ":" in plane.address else plane.address
        plane.a.run(f"{self.load} blast {to}:5202 {size} {self.seconds}")
        said = json.loads(sink.communicate(timeout=30)[0])
        return said["received"] / self.seconds / 1e3

    def pings(self, plane):
        said = plane.a.run(f"ping -n -c {100 * self.seconds} -i 0.01 {plane.address}", check=False)
        times = sorted(float(t) * 1000 for t in re.findall(r"time=([0-9.]+) ms", said))
        if not times:
            sys.exit(f"bench: {plane.name}: no ping was answered")
        return times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]

    def loaded_pings(self, plane):
        server = plane.b.start("iperf3 -s -1", plane.name + "-iperf")
        wait_for("iperf3 listens", lambda: ":5201 " in plane.b.run("ss -ltn"))
        client = plane.a.start(f"iperf3 -c {plane.address} -t {self.seconds + 1}", plane.name + "-load")
        time.sleep(0.5)
        found = self.pings(plane)
        client.wait(timeout=60)
        server.wait(timeout=60)
        return found

    def flooded(self, plane):
        """Returns how much of its rate one TCP stream keeps while garbage arrives, in %."""
        if not hasattr(plane, "stranger"):
            plane.stranger, plane.elsewhere = Host(plane.name + "-x"), Host(plane.name + "-y")
            cable(plane.stranger, plane.b, ("10.8.0.1/24", "10.8.0.2/24"), "x")
            cable(plane.stranger, plane.elsewhere, ("10.8.1.1/24", "10.8.1.2/24"), "y")
            # It takes what comes and answers nothing.
            plane.elsewhere.run("ip route add blackhole default")
            plane.elsewhere.run("ip addr del 10.8.1.2/24 dev y1")
            plane.stranger.run("ip neigh replace 10.8.1.2 lladdr "
                               + plane.elsewhere.run("ip -br link show y1").split()[2] + " dev y0")
        rates = []
        for to in ["10.8.1.2", "10.8.0.2"]:
            channels = live_channels(plane) if isinstance(plane, Agentnet) else ""
            flood = plane.stranger.ask(f"{self.load} garbage {to}:{plane.port} {GARBAGE} {self.seconds + 1} {channels}")
            rates.append(rate(self.iperf(plane, "")[0], "sum_received"))
            sent = json.loads(flood.communicate(timeout=30)[0])
            if sent["sent"] < 0.9 * GARBAGE * self.seconds:
                print(f"bench: only {sent['sent']} datagrams of garbage could be sent", file=sys.stderr)
        return 100 * rates[1] / rates[0]

    def many(self, plane):
        """What a thousand peers take."""
        if not self.wants("rss_known1000", "rss_active1000", "setup_pairs"):
            return
        if not isinstance(plane, Agentnet):
            if not hasattr(plane, "many"):
                plane.many = plane.with_peers(MANY)
                time.sleep(1)
                self.note(plane, "rss_known1000", resident(plane.many.pid))
            return
        if hasattr(plane, "many"):
            return
        plane.many, others = plane.with_peers(MANY, self.load)
        time.sleep(1)
        self.note(plane, "rss_known1000", resident(plane.many.pid))
        peers = others.ask(f"{self.load} peers {MANY} 10.1.0.1:{plane.port} 10.64.0.0 3")
        said = json.loads(peers.communicate(timeout=90)[0])
        self.note(plane, "rss_active1000", resident(plane.many.pid))
        self.note(plane, "setup_pairs", said["peers"] / said["seconds"])
        if said["answered"] < 0.99 * MANY:
            sys.exit(f"bench: {said['answered']} of {MANY} peers were answered")

    def rest(self, planes):
        """What every plane costs while nobody speaks, all at the same time."""
        if not self.wants("idle_wakeups", "rss"):
            return
        # Until what follows traffic is over.
        time.sleep(6 * self.rest_seconds)
        busy = [plane for plane in planes if plane.processes]
        before = {plane.name: switches(plane.pids()) for plane in busy}
        time.sleep(4 * self.rest_seconds)
        for plane in busy:
            woken = (switches(plane.pids()) - before[plane.name]) / (4 * self.rest_seconds) / len(plane.processes)
            self.note(plane, "idle_wakeups", woken)
            self.note(plane, "rss", max(resident(pid) for pid in plane.pids()))


def live_channels(plane):
    """Returns ids of channels that the receiving node knows, as the underlay shows them."""
    look = ("import socket,struct\n"
            "s=socket.socket(socket.AF_PACKET,socket.SOCK_DGRAM,socket.ntohs(3))\n"
            "s.bind((\"v1\",0));s.settimeout(5);found=set()\n"
            "for _ in range(8):\n"
            " d=s.recv(4096);u=d[28:]\n"
            " if d[9]==17 and u[:4]==bytes([32,0,0,0]) and d[12:16]==bytes([10,0,0,1]): found.add(struct.unpack(\">I\",u[4:8])[0])\n"
            "print(*found)")
    watch = plane.b.ask(f"python3 -c '{look}'")
    plane.a.run(f"ping -c 10 -i 0.1 {plane.address}")
    return watch.communicate()[0].strip()


def rate(end, key):
    return end[key]["bits_per_second"] / 1e9
