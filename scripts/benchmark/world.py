"""Network namespaces of this machine, the cables between them, and what processes in them cost."""
import os, subprocess, sys, time

# A file system of its own, where all planes keep their keys, configurations and logs.
W = "/mnt"
TICK = os.sysconf("SC_CLK_TCK")


class Host:
    """A network namespace, held open by a process of its own."""

    def __init__(self, name):
        self.name = name
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self.holder.pid}/ns/net") == own:
            time.sleep(0.01)
        self.run("ip link set lo up")

    def command(self, line):
        shell = line if "|" in line or "&&" in line else "exec " + line
        return ["nsenter", "-t", str(self.holder.pid), "-n", "bash", "-c", shell]

    def run(self, line, check=True):
        ended = subprocess.run(self.command(line), capture_output=True, text=True)
        if check and ended.returncode:
            sys.exit(f"bench: {self.name}: {line}\n{ended.stdout}{ended.stderr}")
        return ended.stdout

    def start(self, line, log):
        """Starts a program whose output goes to a log."""
        out = open(f"{W}/{log}.log", "w")
        return subprocess.Popen(self.command(line), stdout=out, stderr=out)

    def ask(self, line):
        """Starts a program whose output is read."""
        return subprocess.Popen(self.command(line), stdout=subprocess.PIPE, text=True)


def cable(one, other, addresses, name):
    subprocess.run(f"ip link add {name}0 type veth peer name {name}1 && ip link set {name}0 netns {one.holder.pid} && "
                   f"ip link set {name}1 netns {other.holder.pid}", shell=True, check=True)
    for host, end, address in [(one, 0, addresses[0]), (other, 1, addresses[1])]:
        host.run(f"ip addr add {address} dev {name}{end} && ip link set {name}{end} up")


def wait_for(what, test, patience=60):
    end = time.monotonic() + patience
    while not test():
        if time.monotonic() > end:
            subprocess.run(f"tail -n 5 {W}/*.log >&2", shell=True)
            sys.exit(f"bench: waited in vain: {what}")
        time.sleep(0.05)


def cpu(pids):
    """CPU seconds that processes took until now."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def cpu_of_children():
    """CPU seconds of the children that ended."""
    times = os.times()
    return times.children_user + times.children_system


def switches(pids):
    """Context switches of processes until now."""
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/status") as file:
                total += sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)
    return total


def resident(pid):
    """Resident memory of a process in MB."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) / 1000 for line in file if line.startswith("VmRSS"))
