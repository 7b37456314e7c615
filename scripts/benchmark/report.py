"""What is printed, and written into docs/benchmarks.md."""
import os, statistics

from benchmark.figures import TESTS
from benchmark.planes import AGENTNET

YARDSTICK = "boringtun-cli"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
# What the plots show.
PLOTS = {"throughput": ["tcp1", "tcp8", "tcp1r", "bidir"], "cost": ["cpu_s_per_gb"], "datagrams": ["udp64", "udp1380"],
         "latency": ["ping_idle_p50", "ping_loaded_p50"]}
COLOURS = ["#1b6ca8", "#4aa3df", "#7d5ba6", "#2f9e77", "#d08c2f", "#b5524a", "#777777", "#a8a8a8", "#c9c16b"]


def label(row):
    return row["plane"] + (f" {row['suite']} {row['path']}" if row["suite"] else "")


def rows(planes, values):
    made = []
    for plane in planes:
        suite, path, mtu = AGENTNET.get(plane.name, ("", "direct", 1500))
        for test, (unit, _, _) in TESTS.items():
            found = values.get((plane.name, test))
            if not found:
                continue
            median = statistics.median(found)
            ratio = {}
            for rival in planes:
                theirs = values.get((rival.name, test))
                if theirs and rival.name != plane.name and statistics.median(theirs):
                    ratio[rival.name] = round(median / statistics.median(theirs), 3)
            made.append({"plane": "agentnet" if plane.name in AGENTNET else plane.name, "suite": suite,
                         "path": {"auto": "direct"}.get(path, path) + (f" {mtu}" if mtu != 1500 else ""), "test": test,
                         "unit": unit, "median": round(median, 3), "min": round(min(found), 3),
                         "max": round(max(found), 3), "ratio": ratio})
    return made


def table(machine, made):
    lines = [f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, both ends on it; {machine['runs']} runs of "
             f"{machine['seconds']} s a transfer, on {machine['date']}."]
    seen = set()
    for name, version in machine["versions"].items():
        own = "agentnet" if name in AGENTNET else name
        if own not in seen:
            lines.append(f"{own}: {version}.")
            seen.add(own)
    lines = [" \\\n".join(lines), "", f"| test | plane | median | min..max | unit | x {YARDSTICK} |", "|---|---|---|---|---|---|"]
    for test in TESTS:
        for row in made:
            if row["test"] == test:
                ratio = row["ratio"].get(YARDSTICK, "")
                lines.append(f"| {test} | {label(row)} | {row['median']:g} | {row['min']:g}..{row['max']:g} | {row['unit']} | {ratio} |")
    return "\n".join(lines)


def plot(tests, made):
    """Returns bars with their spread as SVG, a group for each test."""
    width, left, bar, y, parts = 760, 250, 16, 10, []
    for test in tests:
        chosen = [row for row in made if row["test"] == test]
        if not chosen:
            continue
        unit, more, what = TESTS[test]
        parts.append(f'<text x="10" y="{y + 14}" font-weight="bold">{test}, {unit}: {what} '
                     f'({"more" if more else "less"} is better)</text>')
        y += 24
        scale = (width - left - 90) / max(row["max"] for row in chosen)
        for n, row in enumerate(chosen):
            length, middle = row["median"] * scale, y + bar / 2
            parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{label(row)}</text>'
                         f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 3}" fill="{COLOURS[n % len(COLOURS)]}"/>'
                         f'<path d="M{left + row["min"] * scale:.1f} {middle - 1}H{left + row["max"] * scale:.1f}" stroke="#222"/>'
                         f'<text x="{left + row["max"] * scale + 6:.1f}" y="{y + 12}">{row["median"]:g}</text>')
            y += bar + 3
        y += 12
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" font-size="12">'
            f'<rect width="{width}" height="{y}" fill="white"/>' + "".join(parts) + "</svg>\n")


def write(root, machine, made):
    """Puts table and plots where the documents have them."""
    os.makedirs(f"{root}/docs/benchmarks", exist_ok=True)
    shown = []
    for name, tests in PLOTS.items():
        with open(f"{root}/docs/benchmarks/{name}.svg", "w") as file:
            file.write(plot(tests, made))
        shown.append(f"![{', '.join(tests)}](benchmarks/{name}.svg)")
    page = f"{root}/docs/benchmarks.md"
    with open(page) as file:
        text = file.read()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    with open(page, "w") as file:
        file.write(before + BEGIN + "\n" + table(machine, made) + "\n\n" + "\n\n".join(shown) + "\n" + END + after)
