"""The other virtio devices: vsock, balloon, rng."""
import http.client
import json
import re
import socket
import time

import pytest

from guests import busybox, finish
from images import static_program
from vmm import SCALE


class Api(http.client.HTTPConnection):
    """One request each to the API socket of a polder-vmm."""

    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30 * SCALE)
        self.sock.connect(str(self.path))

    def call(self, method, path, body=None):
        self.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
        answer = self.getresponse()
        text = answer.read()
        self.close()
        return answer.status, json.loads(text) if text else None


def wait_until(condition, timeout, what):
    deadline = time.monotonic() + timeout * SCALE
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def receive_all(sock):
    return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.fixture
def vsock_echo(tmp):
    program = static_program(tmp, "vsock-echo")
    if program is None:
        pytest.skip("no C compiler for the guest's side of vsock")
    return {"bin/vsock-echo": program}


def test_vsock_host_connects(engine, tmp, vsock_echo):
    path = tmp / "v.sock"
    data = bytes(range(256)) * 1024
    with busybox(engine, tmp, "--vsock", f"cid=42,path={path}", script="vsock-echo listen 5000", files=vsock_echo) as vmm:
        vmm.wait_for("^vsock-echo: listening$", 120)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60 * SCALE)
            sock.connect(str(path))
            sock.sendall(b"CONNECT 5000\n")
            answer = b""
            while not answer.endswith(b"\n"):
                answer += sock.recv(1)
            assert re.fullmatch(rb"OK \d+\n", answer)
            import threading
            sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
            sender.start()
            assert receive_all(sock) == data
            sender.join()
        finish(vmm)
    assert not path.exists()


def test_vsock_guest_connects(engine, tmp, vsock_echo):
    path = tmp / "v.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}_5001")
        server.listen()
        server.settimeout(180 * SCALE)
        with busybox(engine, tmp, "--vsock", f"cid=42,path={path}", script="vsock-echo connect 5001 polder", files=vsock_echo) as vmm:
            peer, _ = server.accept()
            with peer:
                assert receive_all(peer) == b"polder"
                peer.sendall(b"dry land")
            assert "dry land" in finish(vmm)


def test_vsock_without_listener_is_refused(engine, tmp, vsock_echo):
    with busybox(engine, tmp, "--vsock", f"cid=42,path={tmp}/v.sock",
                 script="vsock-echo connect 5002 x && exit 9; echo refused", files=vsock_echo) as vmm:
        assert "refused" in finish(vmm)


def test_balloon_returns_memory(engine, tmp):
    api_path = tmp / "api.sock"
    # So much is filled and then given up that pages which were never touched cannot make up for it, whatever order the guest picks.
    script = "mount -t tmpfs -o size=380m none /tmp && dd if=/dev/zero of=/tmp/fill bs=1M count=360 2>/dev/null && rm /tmp/fill && " \
             "echo FILLED; read -r go; free -m; echo END"
    with busybox(engine, tmp, "--balloon", "0", "--api-sock", api_path, memory="512M", script=script) as vmm:
        vmm.wait_for("^FILLED$", 180)
        api = Api(api_path)
        full = vmm.rss_kib()
        assert api.call("PATCH", "/balloon", {"amount_mib": 400})[0] == 204
        wait_until(lambda: vmm.rss_kib() < full - 150 * 1024, 60, lambda: f"RSS stays at {vmm.rss_kib()} KiB, was {full}")
        assert api.call("PATCH", "/balloon", {"amount_mib": 0})[0] == 204
        time.sleep(2)
        vmm.send("go\n")
        finish(vmm)


def test_rng(engine, tmp):
    script = """
        cat /sys/class/misc/hw_random/rng_current
        a=$(head -c 32 /dev/hwrng | md5sum); b=$(head -c 32 /dev/hwrng | md5sum)
        [ "$a" != "$b" ] && echo DIFFERENT
    """
    with busybox(engine, tmp, "--rng", script=script) as vmm:
        text = finish(vmm)
    assert "virtio_rng" in text and "DIFFERENT" in text
