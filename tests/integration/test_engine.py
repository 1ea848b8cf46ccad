"""Which engine --engine auto takes, and that it says why."""
import re
import time

import pytest

from conftest import kvm_mode
from guests import busybox, finish
from images import static_program


def test_auto_chooses_and_says_why(tmp):
    with busybox("auto", tmp, "--log-level", "info", mode="boot") as vmm:
        assert vmm.wait(120) == 0
    chosen = re.search(r"engine\b.*\b(kvm|jit)\b", vmm.errors)
    assert chosen, vmm.errors
    if kvm_mode() == "nested":
        assert chosen[1] == "jit", vmm.errors


@pytest.mark.parametrize("cpus", [1, 2])
def test_jit_without_optimisations(tmp, cpus):
    """Linux runs as well with all of them off; tests/guest and tests/diff have each by itself."""
    with busybox("jit", tmp, "--jit-opt", "no-all", mode="boot", cpus=cpus) as vmm:
        assert int(vmm.wait_for(r"^POLDER-INIT uptime=\S+ cpus=(\d+)$", 90)[1]) == cpus
        assert vmm.wait(30) == 0


@pytest.mark.parametrize("cpus", [1, 2])
def test_jit_profile(tmp, cpus):
    """Where the time goes, and how often translated code finds what it looks up."""
    start = time.monotonic()
    with busybox("jit,profile=on", tmp, "--engine-stats", mode="boot", cpus=cpus) as vmm:
        vmm.wait_for(r"^POLDER-INIT uptime=", 90)
        assert vmm.wait(30) == 0
    took_ms = (time.monotonic() - start) * 1000
    for cpu in range(cpus):
        lines = "\n".join(re.findall(rf"^vcpu{cpu} (.*)$", vmm.errors, re.M))
        made, runs = int(re.search(r"^blocks (\d+) ", lines, re.M)[1]), int(re.search(r"^blocks run (\d+),", lines, re.M)[1])
        assert runs > 10 * made > 0, lines
        for what in "TLB: accesses", "jump cache: jumps":
            total, first, second, neither = map(float, re.search(
                rf"{what} (\d+), first level (\S+) %, second level (\S+) %, neither (\S+) %", lines).groups())
            assert total > 100000 and 90 < first < 100 and second > 0 and neither > 0, lines
            assert abs(first + second + neither - 100) < 0.01, lines
        shares = dict((name, float(share)) for share, name in re.findall(r"^time: +(\S+) % ([a-zA-Z ]+)", lines, re.M))
        assert abs(sum(shares.values()) - 100) < 1 and shares["translated code"] > 5 and shares["translation"] > 1, lines
        assert 0.2 * took_ms < float(re.search(r"^time: (\S+) ms$", lines, re.M)[1]) < took_ms, lines


def test_jit_small_cache(tmp):
    """Linux boots in a code cache far too small for it, which drops its blocks a few at a time."""
    with busybox("jit,cache=1M", tmp, "--engine-stats", mode="boot") as vmm:
        vmm.wait_for(r"^POLDER-INIT uptime=", 90)
        assert vmm.wait(30) == 0
    made, kept, pieces, again = (int(re.search(rf"vcpu0 {what}", vmm.errors)[1]) for what in (
        r"blocks (\d+)", r"tables: blocks (\d+)", r"evictions (\d+)", r"evictions .* made again (\d+)"))
    assert kept < 20000 and again > 100000, vmm.errors
    assert pieces * 64 > (made - kept) // 2, vmm.errors


def test_jit_debugger(tmp):
    """A watchpoint in the debug registers and single steps of a process, as gdb uses them."""
    program = static_program(tmp, "debug")
    if program is None:
        pytest.skip("no C compiler for the guest's program")
    with busybox("jit", tmp, script="debug", files={"bin/debug": program}) as vmm:
        text = finish(vmm)
    assert re.findall(r"^watch (\d) ffff0ff1\s*$", text, re.M) == ["1", "2"], text
    assert re.search(r"^steps [1-9]\d* over-syscall 1 exit 7\s*$", text, re.M), text
