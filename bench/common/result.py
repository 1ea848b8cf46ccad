"""Figures of one subject: rows of samples a machine, ratios, goals, and their table and JSON form."""
import dataclasses
import math
import os
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path

from .machines import ALL, NATIVE, POLDER, QEMU, TCG, TOP


def geomean(values):
    return math.exp(statistics.fmean(math.log(v) for v in values)) if values else None


def number(value):
    """A figure with three significant digits, as people write it."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


@dataclasses.dataclass
class Row:
    """One figure. `samples`: machine -> one value a run. `higher`: more is better (a rate)."""
    name: str
    unit: str
    higher: bool = False
    samples: dict = dataclasses.field(default_factory=dict)
    skipped: dict = dataclasses.field(default_factory=dict)  # machine -> why

    def add(self, machine, value):
        self.samples.setdefault(machine, []).append(value)

    def median(self, machine):
        return statistics.median(self.samples[machine]) if self.samples.get(machine) else None

    def tcg(self):
        """The better of TCG's machines."""
        values = [self.median(m) for m in TCG if self.samples.get(m)]
        return (max if self.higher else min)(values) if values else None

    def faster(self, other, than):
        if not other or not than:
            return None
        return other / than if self.higher else than / other

    def speedup(self):
        """How many times as fast as TCG, or None."""
        return self.faster(self.median(POLDER), self.tcg())

    def slowdown(self):
        """How many times as slow as the bare host, or None."""
        return self.faster(self.median(NATIVE), self.median(POLDER))

    def as_json(self):
        return {"name": self.name, "unit": self.unit, "higher_is_better": self.higher, "samples": self.samples,
                "medians": {m: self.median(m) for m in self.samples}, "speedup_over_tcg": self.speedup(),
                "slowdown_to_native": self.slowdown(), "skipped": self.skipped}


@dataclasses.dataclass
class Goal:
    """A figure of the whole that should be reached. A value of None was not measured."""
    what: str
    value: float
    at_least: bool
    limit: float
    unit: str = "x"

    def met(self):
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def as_json(self):
        return {**dataclasses.asdict(self), "met": self.met()}


class Result:
    def __init__(self, subject):
        self.subject = subject
        self.rows, self.goals, self.notes, self.skips, self.errors = {}, [], [], [], []
        self.shares = {}  # machine -> smallest share of a CPU that work which never waits had
        self.started = time.time()

    def row(self, name, unit, higher=False):
        return self.rows.setdefault(name, Row(name, unit, higher))

    def skip(self, text):
        if text not in self.skips:
            self.skips.append(text)

    def note(self, text):
        self.notes.append(text)

    def error(self, text):
        self.errors.append(text)

    def speedups(self, names=None):
        found = [row.speedup() for name, row in self.rows.items() if names is None or name in names]
        return [x for x in found if x]

    def slowdowns(self):
        return [x for x in (row.slowdown() for row in self.rows.values()) if x]

    def goal(self, what, value, at_least=None, at_most=None, unit="x"):
        self.goals.append(Goal(what, value, at_least is not None, at_least if at_least is not None else at_most, unit))

    def as_json(self):
        return {"subject": self.subject, "host": host(), "started": int(self.started), "seconds": round(time.time() - self.started, 1),
                "rows": [r.as_json() for r in self.rows.values()], "goals": [g.as_json() for g in self.goals], "notes": self.notes,
                "skips": self.skips, "smallest_cpu_shares": self.shares, "errors": self.errors}

    def print(self):
        print_table(self.subject, list(self.rows.values()))
        print_goals(self.goals)
        for text in self.notes:
            print(f"  {text}")
        busy = [f"{machine} {share:.0%}" for machine, share in self.shares.items() if share < 0.85]
        if busy:
            print(f"WARNING {self.subject}: the host was busy; smallest share of a CPU: {', '.join(busy)}")
        for text in self.skips:
            print(f"SKIP {self.subject}: {text}")
        for text in self.errors:
            print(f"ERROR {self.subject}: {text}")


def first_line(argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, IndexError):
        return None


def host():
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {"cpu": model[1] if model else platform.machine(), "cpus": os.cpu_count(), "kernel": platform.release(),
            "load": os.getloadavg(), "qemu": first_line([QEMU, "--version"]),
            "commit": first_line(["git", "-C", str(TOP), "describe", "--always", "--dirty"])}


def ratio(value):
    return "-" if value is None else f"{value:.2f}"


def print_table(title, rows):
    used = [m for m in ALL if any(r.samples.get(m) or m in r.skipped for r in rows)]
    if not used:
        return
    print(f"\n{title:46}" + "".join(f"{m:>13}" for m in used) + f"{'x TCG':>9}{'x native':>10}")
    for row in rows:
        cells = "".join(f"{'skip' if m in row.skipped else number(row.median(m)):>13}" for m in used)
        print(f"{f'{row.name} [{row.unit}]':46}{cells}{ratio(row.speedup()):>9}{ratio(row.slowdown()):>10}")


def print_goals(goals):
    for g in goals:
        word = {None: "not measured", True: "reached", False: "MISSED"}[g.met()]
        sign = "at least" if g.at_least else "at most"
        print(f"  {g.what:58}{number(g.value):>9} {g.unit:5} {sign} {number(g.limit):<6} {word}")
