"""A polderd with a busybox image, used through the real `polder`: machines on jit."""
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile

import pytest

from images import image
from polderd import Platform

BUSYBOX = shutil.which("busybox")
if os.geteuid() != 0 or not BUSYBOX:
    pytest.skip("needs root and busybox", allow_module_level=True)
SMALL = ("-m", "128M")
SYNCED = "sync && touch /tmp/synced"  # in a command: what it wrote is stable now, as is_synced tells


def tar(entries):
    """{path: bytes of a file, or a string: the target of a link, or None: a folder}"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, content in entries.items():
            info = tarfile.TarInfo(path)
            info.mode = 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def busybox_archive():
    """A docker archive with one layer."""
    with open(BUSYBOX, "rb") as file:
        files = {name: None for name in ("bin", "etc", "proc", "sys", "dev", "root", "srv", "tmp")}
        files["bin/busybox"] = file.read()
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    files |= {f"bin/{name}": "busybox" for name in applets if name != "busybox"}
    files |= {"etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n", "etc/group": b"root:x:0:\n",
              "etc/os-release": b'PRETTY_NAME="busybox"\n'}
    layer = tar(files)
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
              "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}}
    manifest = [{"Config": "config.json", "RepoTags": ["busybox:latest"], "Layers": ["layer.tar"]}]
    return tar({"config.json": json.dumps(config).encode(), "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()})


@contextlib.contextmanager
def busybox_platform(folder, *args, engine="jit", **more):
    """One that runs, with the image `busybox`; `folder` keeps the archive that it comes from."""
    with Platform("--guest-dir", image("microvm"), "--engine", engine, *args, **more) as daemon:
        daemon.archive = folder / "busybox.tar"
        daemon.archive.write_bytes(busybox_archive())
        daemon.polder("image", "import", daemon.archive, "busybox")
        yield daemon


def is_synced(daemon, name):
    """Whether the command of the instance came past SYNCED. (That a file has its text tells only of the guest's memory.)"""
    return daemon.polder("exec", name, "--", "ls", "/tmp/synced", status=None)[0] != ""
