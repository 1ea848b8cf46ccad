"""Which engine --engine auto takes, and that it says why."""
import re

from conftest import kvm_mode
from guests import busybox


def test_auto_chooses_and_says_why(tmp):
    with busybox("auto", tmp, "--log-level", "info", mode="boot") as vmm:
        assert vmm.wait(120) == 0
    chosen = re.search(r"engine\b.*\b(kvm|jit)\b", vmm.errors)
    assert chosen, vmm.errors
    if kvm_mode().startswith("nested"):
        assert chosen[1] == "jit", vmm.errors
