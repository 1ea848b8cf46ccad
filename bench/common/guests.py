"""The guests that benchmarks boot, with the agent and the benchmark's files in them."""
import io
import shutil
import subprocess
import sys
import tarfile

from .guest import Agent, Failure, Native
from .machines import NATIVE, TOP, Spec

sys.path.append(str(TOP / "tests/integration"))
from images import cpio, disk_copy, image, script_disk  # noqa: E402

SOURCES = TOP / "bench/guest"
CMDLINE = "console=ttyS0 quiet panic=-1"
START_AGENT = "mkdir /run/bench && tar -C /run/bench -xf /dev/vdc && cd /run/bench && exec ./agent </dev/console >/dev/console 2>&1"


def compile_program(tmp, name, sources, flags=()):
    """A static program of bench/guest, as bytes. `flags`: more for some sources, as {source: [flag]}."""
    cc = shutil.which("gcc") or shutil.which("cc")
    if not cc:
        raise Failure("no C compiler: install gcc")
    objects = []
    for source in sources:
        objects.append(tmp / f"{name}-{source.replace('/', '-')}.o")
        subprocess.run([cc, "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", *dict(flags).get(source, []), "-c",
                        SOURCES / source, "-o", objects[-1]], check=True)
    out = tmp / f"{name}.program"
    subprocess.run([cc, "-static", "-pthread", "-o", out, *objects, "-lm"], check=True)
    return out.read_bytes()


def agent_program(tmp):
    return compile_program(tmp, "agent", ["agent.c"])


def native(tmp, files, cpus):
    folder = tmp / "native"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
    return Native(folder, cpus)


def busybox_spec(tmp, files, cpus=1, memory="512M", cmdline=""):
    """The cloud kernel with the busybox initramfs; `files` lie in the folder where commands run."""
    folder = image("busybox")
    packed = (folder / "busybox.cpio.gz").read_bytes()
    entries = {f"test/{name}": (content, 0o755) for name, content in {"run": agent_program(tmp), **files}.items()}
    initrd = tmp / "initramfs"
    initrd.write_bytes(packed + bytes(-len(packed) % 4) + cpio(entries))
    return Spec(folder / "vmlinuz", initrd, f"{CMDLINE} polder.test=run {cmdline}".strip(), cpus, memory)


def busybox_maker(tmp, files, cpus=1):
    """For Fleet: guests of the busybox initramfs, and the host."""
    spec = busybox_spec(tmp, files, cpus)
    return lambda machine: native(tmp, files, cpus) if machine == NATIVE else Agent(machine, spec, 180)


def tar_disk(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o755, 1_700_000_000
            tar.addfile(entry, io.BytesIO(content))
    return path


def debian_spec(tmp, machine, files, cpus=1, memory="1G", more_disks=(), **kw):
    """Debian with compilers and load generators, with the agent as process 1's only child and `files` where commands run."""
    folder = image("debian-full")
    name = f"{machine}-{cpus}"  # QEMU locks its disks, so each guest has its own
    disks = [disk_copy(tmp, folder / "debian-full.ext4", f"{name}.ext4"), script_disk(tmp, START_AGENT, f"{name}.script"),
             tar_disk(tmp / f"{name}.tar", {"agent": agent_program(tmp), **files}), *more_disks]
    return Spec(folder / "vmlinuz", folder / "initrd-fast", f"{CMDLINE} root=/dev/vda rw init=/usr/local/lib/polder/run-script "
                "polder.script=vdb", cpus, memory, disks, **kw)


def debian_maker(tmp, files, cpus=1, **kw):
    """For Fleet: guests of Debian, and the host."""
    return lambda machine: native(tmp, files, cpus) if machine == NATIVE else \
        Agent(machine, debian_spec(tmp, machine, files, cpus, **kw), 300)
