"""The machines that are compared, as command lines: polder-vmm's jit engine and QEMU's TCG with its machines microvm and
pc. All get the same kernel, initramfs, disks, number of vCPUs and memory. `native` is the bare host.

TCG's guests are told the frequency of the TSC: without, they cannot find it (microvm) or distrust it (pc) and fall back
to counting ticks, or to a clock that costs them an exit a look."""
import dataclasses
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
VMM = Path(os.environ.get("POLDER_VMM", TOP / "build/bin/polder-vmm"))
QEMU = os.environ.get("POLDER_QEMU", "qemu-system-x86_64")
NATIVE, POLDER, MICROVM, PC = "native", "polder", "tcg-microvm", "tcg-pc"
TCG = (MICROVM, PC)
ALL = (NATIVE, POLDER, MICROVM, PC)


@dataclasses.dataclass
class Spec:
    """What a guest is made of."""
    kernel: Path
    initrd: Path
    cmdline: str = ""
    cpus: int = 1
    memory: str = "512M"
    disks: list = dataclasses.field(default_factory=list)  # writable raw files: vda, vdb, ...
    tap: str = ""
    prefix: tuple = ()  # put before the command line, such as "ip netns exec NAME"
    options: tuple = ()  # for polder-vmm only


def polder(spec):
    argv = [VMM, "--engine", "jit", "--kernel", spec.kernel, "--initrd", spec.initrd, "--cmdline", spec.cmdline, "--cpus", spec.cpus,
            "--memory", spec.memory, "--console", "stdio"]
    for disk in spec.disks:
        argv += ["--disk", disk]
    return argv + (["--net", f"tap={spec.tap}"] if spec.tap else []) + list(spec.options)


@functools.cache
def tsc_khz():
    """The host's TSC frequency, which TCG hands on to guests; None where it is not constant or there is no compiler."""
    if "constant_tsc" not in Path("/proc/cpuinfo").read_text() or not shutil.which("gcc"):
        return None
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run(["gcc", "-O1", "-o", f"{tmp}/tsc", TOP / "bench/guest/tsc.c"], check=True)
        return int(subprocess.run([f"{tmp}/tsc"], stdout=subprocess.PIPE, text=True, check=True).stdout)


def qemu(spec, machine):
    """Disks have an I/O thread of their own, as polder-vmm's have."""
    cmdline = spec.cmdline + (f" tsc=reliable tsc_early_khz={tsc_khz()}" if tsc_khz() else "")
    argv = [QEMU, "-accel", "tcg,thread=multi", "-machine", machine, "-cpu", "max", "-smp", spec.cpus, "-m", spec.memory, "-nodefaults",
            "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", spec.kernel, "-initrd", spec.initrd,
            "-append", cmdline]
    for n, disk in enumerate(spec.disks):
        argv += ["-object", f"iothread,id=io{n}", "-drive", f"file={disk},if=none,id=d{n},format=raw,cache=writeback",
                 "-device", f"virtio-blk-pci,drive=d{n},iothread=io{n}"]
    if spec.tap:
        argv += ["-netdev", f"tap,id=n0,ifname={spec.tap},script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0,romfile="]
    return argv


def command_line(machine, spec):
    if machine == POLDER:
        argv = polder(spec)
    elif machine == PC:
        argv = qemu(spec, "pc")
    else:  # its virtio devices are on PCI express, if it has any
        argv = qemu(spec, "microvm,acpi=on,pcie=on" if spec.disks or spec.tap else "microvm,acpi=off")
    return [str(a) for a in (*spec.prefix, *argv)]


def missing(machine):
    """Why a machine cannot take part, or None."""
    program = {NATIVE: None, POLDER: VMM}.get(machine, QEMU)
    if program is None or shutil.which(program):
        return None
    return f"{program} is missing; run 'make' first" if machine == POLDER else f"{program} is not installed"
