"""The guests that tests boot, as one call each."""
import re

from images import disk_copy, image, initramfs, script_disk
from vmm import Vmm

CMDLINE = "console=ttyS0 quiet panic=-1"


def busybox(engine, tmp, *options, mode="run", script=None, files=None, cmdline="", cpus=1, memory="256M", **kw):
    """The cloud kernel and the test initramfs. With a script it runs as /test/run in the guest."""
    return Vmm("--engine", engine, "--kernel", image("busybox") / "vmlinuz",
               "--initrd", initramfs(tmp, script, files), "--cpus", cpus, "--memory", memory,
               "--cmdline", f"{CMDLINE} polder.test={mode} {cmdline}".strip(), "--console", "stdio", *options, **kw)


def debian(engine, tmp, *options, script=None, name="debian", initrd="initrd-fast", cmdline="", cpus=2, memory="1G",
           disk=None, **kw):
    """Debian from its disk: with systemd, or, with a script, straight to the script as root of the whole system."""
    folder = image(name)
    disks = ["--disk", disk or disk_copy(tmp, folder / f"{name}.ext4")]
    if script is not None:
        disks += ["--disk", f"{script_disk(tmp, script)},ro"]
        cmdline += " init=/usr/local/lib/polder/run-script polder.script=vdb"
    return Vmm("--engine", engine, "--kernel", folder / "vmlinuz", "--initrd", folder / initrd,
               "--cpus", cpus, "--memory", memory, *disks,
               "--cmdline", f"{CMDLINE} root=/dev/vda rw {cmdline}".strip(), "--console", "stdio", *options, **kw)


def finish(vmm, timeout=120):
    """Wait for the end of a guest that runs a script; its output, after checking both exit codes."""
    status = vmm.wait(timeout)
    found = re.search(r"^POLDER-EXIT status=(\d+)$", vmm.text, re.M)
    assert status == 0 and found and found[1] == "0", f"exit status {status}\n{vmm.describe()}"
    return vmm.text
