"""Programs of self-timing kernels (bench/guest/harness.h): run one kernel at a time on each machine in turn."""
import re

from . import subject
from .guest import Failure, Fleet
from .guests import busybox_maker, compile_program, native
from .machines import ALL

CPU_SOURCES = ["harness.c", *(f"cpu/{name}.c" for name in ("main", "integer", "control", "memory", "string", "float", "vector"))]
CPU_FLAGS = {"cpu/vector.c": ["-march=x86-64-v3"]}
LINE = re.compile(r"^BENCH (\S+) (?:skip|([\d.]+) ([\d.]+) ([0-9a-f]{16}) (\d+) (.*))$", re.M)


def parse(name, done, mean):
    """(ns a unit, checksum, unit), or None if the machine's CPU lacks the instructions. Median or mean of the rounds."""
    match = LINE.search(done.text)
    if not match or match[1] != name:
        raise Failure(f"printed no figure:\n{done.text[-600:]}")
    return (float(match[3 if mean else 2]), match[4], match[6]) if match[2] else None


def measure(args, result, tmp, program, sources, flags=(), budget_ms=300, quick_ms=60):
    """All kernels of the program, on guests with one vCPU. A checksum must be the same on all machines, and the time a
    command took must be the same by the guest's clock and the host's."""
    binary = compile_program(tmp, program, sources, flags)
    using = subject.usable_machines(args, result, ALL)
    checksums = {}
    with Fleet(busybox_maker(tmp, {program: binary})) as fleet:
        names = kernel_names(program, tmp, binary)

        def one(name, machine, _run):
            done = fleet.run(machine, f"./{program} --ms {quick_ms if args.quick else budget_ms} {name}", 180)
            figure = parse(name, done, args.cpu_time)  # what a share of a CPU says is about the mean
            if wrong := done.clock_error():
                raise Failure(wrong)
            if not figure:
                result.row(name, "ns").skipped[machine] = "the CPU lacks the instructions"
                return
            ns, checksum, unit = figure
            first = checksums.setdefault(name, (checksum, machine))
            if first[0] != checksum:
                raise Failure(f"checksum {checksum}, but {first[0]} on {first[1]}")
            subject.note_share(result, machine, done)
            result.row(name, f"ns/{unit}").add(machine, subject.fair(args, done, ns))
        subject.alternate(args, result, names, using, one)


def kernel_names(program, tmp, binary):
    return native(tmp, {program: binary}, 1).run(f"./{program} --list").text.split()
