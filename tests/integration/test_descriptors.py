"""polder-vmm with descriptors instead of files: everything it needs is open before it starts."""
import json
import os
import re
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from api_client import Client
from guests import CMDLINE
from images import image, initramfs, static_program
from vmm import BINARY, Vmm


class Given:
    """Open files and listening sockets as the words that name them; closed with the stack."""

    def __init__(self, stack):
        self.stack, self.fds = stack, []

    def add(self, fd):
        self.fds.append(fd)
        self.stack.callback(os.close, fd)
        return f"fd:{fd}"

    def file(self, path, flags=os.O_RDONLY):
        return self.add(os.open(path, flags, 0o600))

    def listener(self, path):
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(path))
            s.listen(16)
            return self.add(os.dup(s.fileno()))


@pytest.fixture
def given():
    with ExitStack() as stack:
        yield Given(stack)


def chain(tmp):
    """top.qcow2 over middle.qcow2 over base.raw, which then have other names than the images say."""
    base, middle, top = (tmp / name for name in ("base.raw", "middle.qcow2", "top.qcow2"))
    base.write_bytes(b"from the base".ljust(1 << 20, b"\0"))
    img = BINARY.parent / "polder-img"
    subprocess.run([img, "create", "-f", "qcow2", "-b", base, "-F", "raw", middle], check=True)
    subprocess.run([img, "create", "-f", "qcow2", "-b", middle, "-F", "qcow2", top], check=True)
    moved = []
    for path in (top, middle, base):
        moved.append(path.rename(path.with_suffix(".moved")))
    return moved


def boot(given, tmp, *options, script, files=None):
    return Vmm("--engine", "jit", "--kernel", given.file(image("busybox") / "vmlinuz"),
               "--initrd", given.file(initramfs(tmp, script, files)), "--memory", "256M",
               "--cmdline", f"{CMDLINE} polder.test=run", "--console", "stdio", *options, fds=given.fds)


def copy_is_done(client):
    deadline = time.monotonic() + 30
    while (state := client.get("/drives/drive0/copy")["state"]) != "Done":
        assert state == "Running" and time.monotonic() < deadline
        time.sleep(0.05)


def live_operations_in_a_sandbox(client, tmp, other):
    """What needs no new file; what does is refused and ends nothing."""
    limit, disk = {"ops": {"size": 999, "refill_time": 1}}, client.get("/vm/config")["drives"][0]["path_on_host"]
    client.put("/actions", action_type="FlushMetrics")
    client.patch("/drives/drive0", drive_id="drive0", rate_limiter=limit)
    for base, why in (disk, "is what disk 'drive0' is written to"), ("fd:777", "Bad file descriptor"):
        body = {"kind": "Rebase", "base_path_on_host": base, "base_name": "x", "format": "raw"}
        client.refused("PUT", "/drives/drive0/copy", body, why)
    client.put("/drives/drive0/copy", kind="Rebase", base_path_on_host=other, base_name="other.raw", format="raw")
    copy_is_done(client)
    assert client.get("/vm/config")["drives"][0]["backing"] == [other]
    client.put("/drives/drive0/copy", kind="Flatten")
    copy_is_done(client)
    new = str(tmp / "new.qcow2")
    for method, path, body in [("PATCH", "/drives/drive0", {"drive_id": "drive0", "path_on_host": new}),
                               ("PUT", "/drives/drive0/copy", {"kind": "Backup", "path_on_host": new}),
                               ("PUT", "/drives/drive0/copy", {"kind": "Rebase", "base_path_on_host": new}),
                               ("PUT", "/drives/drive0/snapshot", {"path_on_host": new})]:
        answer = client.call(method, path, body)
        assert answer.status == 400 and "in a sandbox no file can be opened" in answer.fault, (path, answer.text)


def threads_are_confined(vmm):
    """Each has the list of its engine and at least one more, that of its kind; but the metrics' thread, which sleeps."""
    filters = {}
    for task in Path(f"/proc/{vmm.pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        if "Seccomp_filters" not in status:
            return  # before Linux 5.9
        if not status["Name"].startswith("iou-"):  # the kernel's, of io_uring
            filters.setdefault(status["Name"].split()[0], []).append(int(status["Seccomp_filters"]))
    assert filters.keys() == {"polder-vmm", "vcpu0", "blk", "MHD-single"}, filters
    assert sorted(filters.pop("polder-vmm"))[-1] == 2 and all(min(counts) >= 2 for counts in filters.values()), filters


@pytest.mark.parametrize("sandbox", ["off", "on"])
def test_everything_by_descriptor(tmp, given, sandbox):
    top, middle, base = chain(tmp)
    program = static_program(tmp, "vsock-echo")
    disk = (f"{given.file(top, os.O_RDWR)},format=qcow2,backing={given.file(middle)},backing={given.file(base)}")
    (tmp / "other.raw").write_bytes(b"other" * 1000)
    other = given.file(tmp / "other.raw")
    log = given.file(tmp / "log", os.O_WRONLY | os.O_CREAT)
    metrics = given.file(tmp / "metrics", os.O_WRONLY | os.O_CREAT)
    api, vsock = given.listener(tmp / "api.sock"), given.listener(tmp / "vsock.sock")
    script = """
        head -c 13 /dev/vda; echo
        echo written | dd of=/dev/vda bs=512 seek=8 conv=fsync 2>/dev/null
        vsock-echo listen 5000
    """
    with boot(given, tmp, "--sandbox", sandbox, "--disk", disk, "--log-file", log, "--log-level", "info", "--metrics", metrics,
              "--api-sock", api, "--vsock", f"cid=3,path={vsock}", script=script, files={"bin/vsock-echo": program}) as vmm:
        vmm.wait_for("^vsock-echo: listening$", 120)
        client = Client(tmp / "api.sock")
        assert client.get("/")["state"] == "Running"
        if sandbox == "on":
            live_operations_in_a_sandbox(client, tmp, other)
            threads_are_confined(vmm)
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(tmp / "vsock.sock"))
            s.settimeout(20)
            s.sendall(b"CONNECT 5000\n")
            assert re.fullmatch(rb"OK \d+\n", s.recv(64))
            s.sendall(b"hello")
            assert s.recv(64) == b"hello"
        assert vmm.wait(60) == 0, vmm.describe()
    assert "from the base" in vmm.text
    assert "jit" in (tmp / "log").read_text()
    assert ("root is empty" in (tmp / "log").read_text()) == (sandbox == "on")
    assert json.loads((tmp / "metrics").read_text().splitlines()[0])
    assert (tmp / "api.sock").exists() and (tmp / "vsock.sock").exists()  # whoever made them removes them
    assert b"written" in top.read_bytes()


def test_encrypted_and_compressed_disks_in_a_sandbox(tmp, given):
    """Whose libraries open files of their own, and whose work is done by threads that start late."""
    img, key = BINARY.parent / "polder-img", tmp / "key"
    key.write_bytes(b"a passphrase")
    (tmp / "plain").write_bytes(os.urandom(1000) * 4000)
    subprocess.run([img, "create", "-f", "luks", "--key", key, tmp / "a.luks", "8M"], check=True)
    subprocess.run([img, "create", "-f", "qcow2", "-o", "encrypt.format=luks", "--key", key, tmp / "b.qcow2", "8M"], check=True)
    subprocess.run([img, "convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd", tmp / "plain", tmp / "c.qcow2"], check=True)
    disks = []
    for name, more in (("a.luks", f"format=luks,key={given.file(key)}"), ("b.qcow2", f"format=qcow2,key={given.file(key)}"),
                       ("c.qcow2", "format=qcow2")):
        disks += ["--disk", f"{given.file(tmp / name, os.O_RDWR)},{more}"]
    script = """
        for d in a b c; do
            cat /dev/vd$d >/dev/null && echo "from the guest" | dd of=/dev/vd$d bs=64k conv=fsync 2>/dev/null && echo "wrote $d"
        done
    """
    with boot(given, tmp, "--sandbox", "on", *disks, script=script) as vmm:
        assert vmm.wait(60) == 0, vmm.describe()
    assert re.findall(r"^wrote (\w)", vmm.text, re.MULTILINE) == ["a", "b", "c"]
    assert [b"from the guest" in (tmp / name).read_bytes() for name in ("a.luks", "b.qcow2", "c.qcow2")] == [False, False, True]


@pytest.mark.parametrize("options, says", [
    (["--kernel", "fd:77"], "kernel 'fd:77': Bad file descriptor"),
    (["--disk", "fd:{ro}"], "disk 'fd:{ro}' was not opened for reading and writing"),
    (["--disk", "fd:{top},format=qcow2"], "cannot name the file"),
    (["--disk", "fd:{top},format=qcow2,backing=fd:{ro}"], "its chain has more images"),
    (["--disk", "fd:{ro},ro", "--vsock", "cid=3,path=fd:{ro}"], "vsock socket 'fd:{ro}'"),
    (["--net", "tap=fd:{ro}"], "network 'fd:{ro}': Permission denied"),
    (["--net", "tap=fd:{top}"], "no queue of a tap interface"),
])
def test_a_wrong_descriptor_is_named(tmp, given, options, says):
    top, middle, _ = chain(tmp)
    words = {"ro": given.file(middle)[3:], "top": given.file(top, os.O_RDWR)[3:]}
    options = [o.format(**words) for o in options]
    if "--kernel" not in options:
        options += ["--kernel", str(image("busybox") / "vmlinuz")]
    with Vmm("--console", "none", *options, fds=given.fds) as vmm:
        assert vmm.wait(30) == 1
    assert says.format(**words) in vmm.errors
