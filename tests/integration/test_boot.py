"""Boot of the Debian cloud kernel, and how a guest ends."""
import re

import pytest

from guests import busybox, finish
from images import image


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_boots_to_init(engine, tmp, cpus):
    with busybox(engine, tmp, mode="boot", cpus=cpus) as vmm:
        found = vmm.wait_for(r"^POLDER-INIT uptime=\S+ cpus=(\d+)$", 90)
        assert int(found[1]) == cpus
        assert vmm.wait(30) == 0


@pytest.mark.not_nested("32 vCPUs take turns on two translated CPUs")
def test_boots_with_as_many_vcpus_as_there_may_be(engine, tmp):
    with busybox(engine, tmp, mode="boot", cpus=32, memory="512M") as vmm:
        assert int(vmm.wait_for(r"^POLDER-INIT uptime=\S+ cpus=(\d+)$", 180)[1]) == 32
        assert vmm.wait(60) == 0


def test_script_output_and_status(engine, tmp):
    with busybox(engine, tmp, script="uname -r; echo args $((6 * 7)); exit 5") as vmm:
        assert vmm.wait(120) == 0
        assert "args 42" in vmm.text
        assert "POLDER-EXIT status=5" in vmm.text


def test_console_input(engine, tmp):
    with busybox(engine, tmp, script="echo GUEST-UP; read -r line; echo \"got <$line>\"; head -c 3000 /dev/zero | tr '\\0' x; echo") as vmm:
        vmm.wait_for("^GUEST-UP$", 120)
        vmm.send("tulips & herring\n")
        vmm.wait_for("^got <tulips & herring>$", 30)
        assert "x" * 3000 in finish(vmm)


def test_kernel_without_initrd_says_why(engine, tmp):
    from vmm import Vmm
    with Vmm("--engine", engine, "--kernel", image("busybox") / "vmlinuz", "--memory", "256M",
             "--cmdline", "console=ttyS0 root=/dev/none panic=0") as vmm:
        vmm.wait_for("Kernel panic - not syncing: VFS: Unable to mount root fs", 90)


def test_memory_size_is_what_was_asked(engine, tmp):
    with busybox(engine, tmp, memory="1G", script="grep MemTotal /proc/meminfo") as vmm:
        total = int(re.search(r"MemTotal:\s+(\d+) kB", finish(vmm))[1])
        assert 900 * 1024 < total <= 1024 * 1024


def test_no_kernel_complaints(engine, tmp):
    """A stock kernel finds nothing to warn about in this machine."""
    with busybox(engine, tmp, cpus=2, script="dmesg -r | grep '^<[0-4]>' | sed 's/^/COMPLAINT /'; true") as vmm:
        lines = re.findall(r"^COMPLAINT (.*)$", finish(vmm), re.M)
        bad = [line for line in lines if re.search(r"BUG|WARNING|Call Trace|ACPI.*(Error|BIOS)|unable|failed|stuck|lockup", line)]
        assert not bad, "\n".join(bad)


def test_clock_source_and_time(engine, tmp):
    script = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; echo before; sleep 2; echo after; date +now=%s"
    with busybox(engine, tmp, script=script) as vmm:
        import time
        before = vmm.wait_for("^before$", 120) and time.monotonic()
        vmm.wait_for("^after$", 60)
        slept = time.monotonic() - before
        text = finish(vmm)
        assert re.search(r"^(kvm-clock|tsc)$", text, re.M), text
        assert 1.8 < slept < 4
        assert abs(int(re.search(r"now=(\d+)", text)[1]) - time.time()) < 5


def test_reboot_restarts_the_guest(engine, tmp):
    with busybox(engine, tmp, mode="reboot") as vmm:
        first = vmm.wait_for("^POLDER-INIT", 90)
        vmm.wait_for("^POLDER-REBOOT$", 30, first.end())
        vmm.wait_for("^POLDER-INIT", 90, first.end())


@pytest.mark.parametrize("mode, cmdline, options, status, cause", [
    ("panic", "", [], 5, "panic"),
    ("reboot", "reboot=t", [], 4, "triple fault"),
    ("reboot", "", ["--no-reboot"], 3, "reboot"),
], ids=["panic", "triple-fault", "no-reboot"])
def test_other_ends_have_their_own_status(engine, tmp, mode, cmdline, options, status, cause):
    with busybox(engine, tmp, *options, mode=mode, cmdline=cmdline) as vmm:
        assert vmm.wait(120) == status, vmm.describe()
        assert re.search(cause, vmm.errors, re.I), vmm.describe()
