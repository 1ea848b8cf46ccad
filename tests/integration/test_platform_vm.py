"""Instances of kind vm: a disk image with a system of its own, which cloud-init sets up and which brings the agent."""
import os
import subprocess

import pytest

from images import image
from polderd import BIN, Platform

if os.geteuid() != 0:
    pytest.skip("needs root", allow_module_level=True)
USER_DATA = """#cloud-config
write_files:
  - path: /etc/polder-test
    content: from user data
cloud_config_modules: []
cloud_final_modules: []
ssh_genkeytypes: []
"""  # the modules left out take time and are of no use here


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    """With Debian's disk as the image `debian-vm`."""
    folder = tmp_path_factory.mktemp("vm")
    with Platform("--guest-dir", image("microvm"), "--engine", "jit") as daemon:
        raw, disk = image("debian-full") / "debian-full.ext4", folder / "disk.qcow2"
        subprocess.run([BIN / "polder-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk], check=True, capture_output=True)
        daemon.polder("image", "import", disk, "debian-vm", timeout=120)
        disk.unlink()
        yield daemon


def test_import_wants_a_name_and_a_kernel(platform, tmp_path):
    disk = tmp_path / "empty.raw"
    disk.write_bytes(bytes(1 << 20))
    assert "no name of its own" in platform.polder("image", "import", disk, status=2)[1]
    assert "vmlinuz" in platform.polder("image", "import", disk, "empty", status=1)[1]


def test_a_system_of_its_own(platform, tmp_path):
    """User data, host name, address, volume and agent are there; what it wrote is still there after a stop, on a disk larger
    than the image's."""
    (tmp_path / "user-data").write_text(USER_DATA)
    platform.polder("volume", "create", "data")
    platform.polder("run", "-d", "--name", "box", "--user-data", tmp_path / "user-data", "-v", "data:/srv", "debian-vm")

    def run(*argv):
        return subprocess.run(platform.command("exec", "box", "--", *argv), capture_output=True, text=True, timeout=60)

    platform.until(lambda: run("cloud-init", "status").stdout == "status: done\n", timeout=300)
    assert run("cat", "/etc/polder-test", "/etc/hostname").stdout == "from user databox\n"
    address, = platform.document("box")["status"]["addresses"]
    assert address in run("ip", "-4", "addr").stdout
    assert run("sh", "-c", "findmnt -no SOURCE /srv && echo kept >/srv/file && df --output=size -BG / | tail -1").stdout.split() == [
        "/dev/vdc", "10G"]
    assert "Debian" in platform.polder("logs", "box")[0]
    run("sh", "-c", "echo old >/root/file; sync")
    platform.polder("snapshot", "create", "box", "s1")
    run("sh", "-c", "echo new >/root/file; sync")
    platform.polder("stop", "-t", "60", "box", timeout=90)
    assert platform.document("box")["status"]["exit_code"] == 0
    platform.polder("snapshot", "restore", "box", "s1")
    platform.polder("clone", "box", "box2")
    platform.polder("start", "box")
    platform.until(lambda: run("cat", "/srv/file", "/root/file").stdout == "kept\nold\n", timeout=300)
    platform.polder("rm", "-f", "box", "box2")


def test_kinds_are_told_apart(platform):
    assert "own init" in platform.polder("create", "debian-vm", "ls", status=1)[1]
    assert "kind" in platform.polder("create", "--kind", "microvm", "debian-vm", status=1)[1]

