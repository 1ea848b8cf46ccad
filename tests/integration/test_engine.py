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


def test_jit_debugger(tmp):
    """A watchpoint in the debug registers and single steps of a process, as gdb uses them."""
    program = static_program(tmp, "debug")
    if program is None:
        pytest.skip("no C compiler for the guest's program")
    with busybox("jit", tmp, script="debug", files={"bin/debug": program}) as vmm:
        text = finish(vmm)
    assert re.findall(r"^watch (\d) ffff0ff1\s*$", text, re.M) == ["1", "2"], text
    assert re.search(r"^steps [1-9]\d* over-syscall 1 exit 7\s*$", text, re.M), text
