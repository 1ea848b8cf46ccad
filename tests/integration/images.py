"""Guest images, and the archives and disks that tests add to them."""
import functools
import os
import shutil
import stat
import subprocess
from pathlib import Path

from vmm import TOP


@functools.cache
def image(name):
    """The folder of an image made by tools/guest-image/build, or the one under $POLDER_IMAGES."""
    if ready := os.environ.get("POLDER_IMAGES"):
        return Path(ready) / name
    done = subprocess.run([TOP / "tools/guest-image/build", name], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


def cpio(files):
    """A newc archive of {path: (content, mode)}; a path ending in / is a folder."""
    out = bytearray()

    def entry(name, content, mode):
        nonlocal out
        fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)

    for path, (content, mode) in files.items():
        kind = stat.S_IFDIR if path.endswith("/") else stat.S_IFREG
        entry(path.rstrip("/"), content, kind | mode)
    entry("TRAILER!!!", b"", 0)
    return bytes(out)


def initramfs(tmp, script=None, files=None):
    """The busybox initramfs, with `script` as /test/run and more {path: bytes} (all executable) appended."""
    base = image("busybox") / "busybox.cpio.gz"
    extra = {path: (content, 0o755) for path, content in (files or {}).items()}
    if script is not None:
        extra["test/run"] = (b"#!/bin/sh\n" + script.encode(), 0o755)
    if not extra:
        return base
    path = tmp / "initramfs"
    packed = base.read_bytes()
    path.write_bytes(packed + bytes(-len(packed) % 4) + cpio(extra))  # the kernel looks at multiples of 4
    return path


def disk_copy(tmp, source, name="disk.ext4"):
    """A private copy of a disk image. Under a nested host the image is a device that is private already."""
    if stat.S_ISBLK(os.stat(source).st_mode):
        return source
    path = tmp / name
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", source, path], check=True)
    return path


def script_disk(tmp, script, name="script.raw"):
    """A raw disk that holds a shell script, padded with zeros to whole sectors."""
    path = tmp / name
    data = b"#!/bin/sh\n" + script.encode()
    path.write_bytes(data + bytes(-len(data) % 4096))
    return path


def static_program(tmp, source):
    """Compile a small C program of tests/integration/guest/ statically; None if there is no compiler."""
    if ready := os.environ.get("POLDER_IMAGES"):
        return (Path(ready) / "programs" / source).read_bytes()
    if not shutil.which("cc"):
        return None
    out = tmp / source
    subprocess.run(["cc", "-O1", "-static", "-o", out, Path(__file__).parent / "guest" / f"{source}.c"], check=True)
    return out.read_bytes()
