"""The command line that all benchmarks share, and the loop over runs and machines."""
import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from . import machines, plot
from .guest import Failure
from .result import Result


def progress(text):
    if sys.stderr.isatty():
        print(f"\r{text:<100.100}", end="\r" if not text else "", file=sys.stderr, flush=True)


def add_options(parser):
    parser.add_argument("--quick", action="store_true", help="one short run of each, against one machine of QEMU")
    parser.add_argument("--runs", type=int, help="runs of each (default 5, quick 1)")
    parser.add_argument("--machines", default=",".join(machines.ALL), help=f"which of {','.join(machines.ALL)} (default: all)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only the figures of this name; repeat for more")
    parser.add_argument("--cpu-time", action="store_true", help="for busy hosts: scale times of work that never waits by the share of a "
                        "CPU that the machine had")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the ratios to TCG")


def usable_machines(args, result, wanted):
    """Those of `wanted` that the options name and the host has. A quick run takes one TCG machine."""
    chosen = []
    for machine in wanted:
        if machine not in args.machines.split(","):
            continue
        if machine in machines.TCG and args.quick and any(m in machines.TCG for m in chosen):
            continue
        if why := machines.missing(machine):
            result.skip(f"{machine}: {why}")
        else:
            chosen.append(machine)
    return chosen


def fair(args, done, value):
    """A time of work that keeps one CPU busy, as it was or, with --cpu-time, as it would have been on an idle host."""
    return value * min(done.share(), 1) if args.cpu_time else value


def note_share(result, machine, done):
    """Remembers the smallest share of a CPU, to warn of a busy host."""
    result.shares[machine] = min(done.share(), result.shares.get(machine, 1))


def alternate(args, result, names, using, one):
    """Calls one(name, machine, run) for all, machines alternating innermost, so that noise of the host hits all alike.
    A machine that fails at a name is left out for the rest of that name."""
    for name in names:
        if args.only and name not in args.only:
            continue
        out = set()
        for run in range(args.runs):
            for machine in using:
                if machine in out:
                    continue
                progress(f"{result.subject}: {name}, run {run + 1} of {args.runs}, {machine}")
                try:
                    one(name, machine, run)
                except Failure as failure:
                    out.add(machine)
                    result.error(f"{name} on {machine}: {failure}")
    progress("")


def main(name, description, measure, more_options=None):
    """`measure(args, result, tmp)` fills the result. Status 0: measured, whether goals are reached or not; 1: errors."""
    parser = argparse.ArgumentParser(prog=f"bench/{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    if more_options:
        more_options(parser)
    args = parser.parse_args()
    args.runs = args.runs or (1 if args.quick else 5)
    result = Result(name)
    with tempfile.TemporaryDirectory(prefix="polder-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as tmp:
        try:
            measure(args, result, Path(tmp))
        except Failure as failure:
            result.error(str(failure))
    result.print()
    if args.json:
        args.json.write_text(json.dumps(result.as_json(), indent=1) + "\n")
    if args.svg:
        args.svg.write_text(plot.draw([result.as_json()]))
    sys.exit(1 if result.errors else 0)
