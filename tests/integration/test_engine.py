"""Which engine --engine auto takes, and that it says why."""
import re

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
