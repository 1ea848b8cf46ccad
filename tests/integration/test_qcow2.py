"""qcow2 disks: a guest boots from an overlay, what it writes goes there, and the backing file stays as it was."""
import hashlib
import json
import shutil
import subprocess

import pytest

from guests import busybox, debian, finish
from images import disk_copy, image
from vmm import TOP

POLDER_IMG = TOP / "build/bin/polder-img"
pytestmark = [pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-utils is not installed"),
              pytest.mark.not_nested("both engines have the same block layer; test_disk_live.py runs it beside vCPUs of KVM")]


def img(*argv, status=0):
    done = subprocess.run([POLDER_IMG, *map(str, argv)], capture_output=True, text=True, timeout=120)
    assert done.returncode == status, f"{argv}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sound(disk):
    img("check", disk)
    done = subprocess.run(["qemu-img", "check", disk], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_debian_boots_from_an_overlay(engine, tmp):
    base = disk_copy(tmp, image("debian") / "debian.ext4")
    before = digest(base)
    overlay = tmp / "root.qcow2"
    img("create", "-f", "qcow2", "-b", base.name, "-F", "raw", overlay)
    with debian(engine, tmp, script="echo kept >/root/kept; sync; echo WRITTEN", disk=overlay) as vmm:
        assert "WRITTEN" in finish(vmm, 600)
    sound(overlay)
    assert digest(base) == before
    with debian(engine, tmp, script="cat /root/kept", disk=overlay) as vmm:
        assert "kept" in finish(vmm, 600)
    assert json.loads(img("info", "--output=json", overlay))["backing-filename"] == base.name


def test_write_discard_and_reboot(engine, tmp):
    disk = tmp / "data.qcow2"
    img("create", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k", disk, "64M")
    script = """
        if [ "$(head -c 6 /dev/vda)" = second ]; then cmp /dev/vda /dev/vdb; exit $?; fi
        head -c 9m /dev/urandom >/tmp/a
        dd if=/tmp/a of=/dev/vda bs=64k seek=5 conv=fsync,notrunc 2>/dev/null
        blkdiscard -o 1048576 -l 2097152 /dev/vda
        dd if=/tmp/a of=/dev/vda bs=4k seek=300 count=9 conv=fsync,notrunc 2>/dev/null
        printf second >/dev/vda; sync
        dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync 2>/dev/null
        reboot -f; sleep 60
    """
    copy = tmp / "copy.raw"
    copy.write_bytes(bytes(64 << 20))
    with busybox(engine, tmp, "--disk", disk, "--disk", copy, script=script) as vmm:
        finish(vmm, 240)
    sound(disk)
    assert "identical" in img("compare", "-F", "raw", disk, copy)


def test_a_raw_disk_with_a_forged_header_stays_raw(engine, tmp):
    secret = tmp / "secret"
    secret.write_bytes(b"secret" * 1024)
    forged = tmp / "forged.qcow2"
    img("create", "-f", "qcow2", "-b", "secret", "-F", "raw", forged)
    disk = forged.rename(tmp / "guest.raw")
    with busybox(engine, tmp, "--disk", disk, script="head -c 3 /dev/vda; echo") as vmm:
        assert "QFI" in finish(vmm)
    assert "say -f qcow2" in img("info", disk, status=1)


def test_a_backing_file_elsewhere_is_refused(engine, tmp):
    folder = tmp / "images"
    folder.mkdir()
    (tmp / "elsewhere").write_bytes(bytes(1 << 20))
    img("create", "-f", "qcow2", "-b", "../elsewhere", "-F", "raw", "--allow-backing", tmp, folder / "disk.qcow2")
    with busybox(engine, tmp, "--disk", folder / "disk.qcow2", script="true") as vmm:
        assert vmm.wait(60) == 1
    with busybox(engine, tmp, "--disk", folder / "disk.qcow2", "--allow-backing", tmp, script="true") as vmm:
        finish(vmm)
    assert "outside of its folder" in img("map", folder / "disk.qcow2", status=1)
    img("map", "--allow-backing", tmp, folder / "disk.qcow2")
