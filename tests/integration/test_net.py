"""virtio-net through a tap in a network namespace of the test's own, and through passt."""
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from guests import busybox, finish
from vmm import BINARY, SCALE

HOST, GUEST = "10.213.0.1", "10.213.0.2"
BODY = b"0123456789abcdef" * 65536  # 1 MiB
SUM_SCRIPT = "sha256sum | cut -d' ' -f1 | sed 's/^/BODY /'"


def body_sum():
    return "BODY " + hashlib.sha256(BODY).hexdigest()


class Namespace:
    """A network namespace of the test's own, with a web server on `address`. Skips where the host does not allow one."""

    def __init__(self, folder, address, *setup):
        self.name = f"polder-test-{os.getpid()}"
        self.prefix = ("ip", "netns", "exec", self.name)
        self.folder, self.address, self.setup = folder, address, setup
        self.server = None

    def command(self, *argv, **kw):
        return subprocess.run([*self.prefix, *argv], capture_output=True, text=True, **kw)

    def __enter__(self):
        made = subprocess.run(["ip", "netns", "add", self.name], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"cannot make a network namespace: {made.stderr.strip()}")
        try:
            for line in ("ip link set lo up", *self.setup):
                done = self.command("sh", "-c", line)
                if done.returncode:
                    pytest.skip(f"cannot run '{line}': {done.stderr.strip()}")
            self.folder.mkdir()
            (self.folder / "body").write_bytes(BODY)
            self.server = subprocess.Popen([*self.prefix, "python3", "-m", "http.server", "8000", "-b", self.address],
                                           cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.server:
            self.server.kill()
            self.server.wait()
        subprocess.run(["ip", "netns", "delete", self.name], check=True)

    def links(self):
        return self.command("ip", "-o", "link").stdout.count("\n")

    def processes(self):
        """Names of the processes in the namespace, other than the web server."""
        return sorted(map(self.name_of, self.pids()))

    def pids(self):
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split()
        return [int(p) for p in pids if int(p) != self.server.pid]

    @staticmethod
    def name_of(pid):
        return Path(f"/proc/{pid}/comm").read_text().strip()


def wait_until(condition, timeout=20):
    deadline = time.monotonic() + timeout * SCALE
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def tap_namespace(tmp):
    return Namespace(tmp / "www", HOST, "ip tuntap add tap0 mode tap vnet_hdr", f"ip addr add {HOST}/24 dev tap0", "ip link set tap0 up")


def passt_namespace(tmp):
    """What passt needs of a host: an address, a default route, and leave to ping. No packet leaves the namespace."""
    if not shutil.which("passt"):
        pytest.skip("passt is not installed")
    return Namespace(tmp / "www", "127.0.0.1", "ip link add up0 type veth peer name up1", "ip addr add 10.214.0.2/24 dev up0",
                     "ip link set up0 up", "ip link set up1 up", "ip route add default via 10.214.0.1 dev up0",
                     "ip addr add 10.214.9.9/32 dev lo", "echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range")


def test_tap_both_ways(engine, tmp):
    script = f"""
        for i in 1 2 3 4 5 6 7 8 9 10; do ping -c 1 -W 2 {HOST} >/dev/null && break; done
        ping -c 3 -W 5 {HOST} || exit 1
        wget -q -O - http://{HOST}:8000/body | {SUM_SCRIPT}
        mkdir /tmp/www && head -c 1m /dev/zero >/tmp/www/zeros && httpd -p 8080 -h /tmp/www
        echo GUEST-UP; read -r done
    """
    with tap_namespace(tmp) as ns:
        links = ns.links()
        with busybox(engine, tmp, "--net", "tap=tap0", cmdline=f"polder.net={GUEST}/24,{HOST}", script=script,
                     prefix=ns.prefix) as vmm:
            vmm.wait_for("^GUEST-UP$", 180)
            ping = ns.command("ping", "-c", "3", "-W", "10", GUEST)
            fetched = ns.command("curl", "-s", "-m", "60", "-o", tmp / "zeros", f"http://{GUEST}:8080/zeros")
            vmm.send("done\n")
            text = finish(vmm)
        assert ns.links() == links
    assert body_sum() in text, text
    assert ping.returncode == 0, ping.stdout
    assert fetched.returncode == 0 and (tmp / "zeros").read_bytes() == bytes(1 << 20)


GATEWAY = "gw=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')"


def test_passt_dhcp_and_http_to_the_host(engine, tmp):
    script = f"{GATEWAY}; echo gateway $gw; ip -4 -o addr show eth0; wget -q -O - http://$gw:8000/body | {SUM_SCRIPT}"
    with passt_namespace(tmp) as ns:
        with busybox(engine, tmp, "--net", "user", cmdline="polder.net=dhcp", script=script, prefix=ns.prefix) as vmm:
            text = finish(vmm, 180)
        time.sleep(0.5)
        assert ns.processes() == [], "passt is left behind"
    assert "gateway 10.214.0.1" in text and "10.214.0.2" in text, text
    assert body_sum() in text, text


def test_passt_ping(engine, tmp):
    with passt_namespace(tmp) as ns:
        with busybox(engine, tmp, "--net", "user", cmdline="polder.net=dhcp", script="ping -c 3 -W 5 10.214.9.9",
                     prefix=ns.prefix) as vmm:
            assert " 0% packet loss" in finish(vmm, 180)


def test_passt_http_from_the_host(engine, tmp):
    if "forward=" not in subprocess.run([BINARY, "--help"], capture_output=True, text=True, timeout=20).stdout:
        pytest.skip("--net user has no port forwarding yet (no forward= in --help)")
    script = "mkdir /tmp/www && head -c 1m /dev/zero >/tmp/www/zeros && httpd -p 8080 -h /tmp/www; echo GUEST-UP; read -r done"
    with passt_namespace(tmp) as ns:
        with busybox(engine, tmp, "--net", "user,forward=9080:8080", cmdline="polder.net=dhcp", script=script, prefix=ns.prefix) as vmm:
            vmm.wait_for("^GUEST-UP$", 180)
            fetched = ns.command("curl", "-s", "-m", "60", "-o", tmp / "zeros", "http://127.0.0.1:9080/zeros")
            vmm.send("done\n")
            finish(vmm)
    assert fetched.returncode == 0 and (tmp / "zeros").read_bytes() == bytes(1 << 20)


def test_passt_that_dies_is_started_again(engine, tmp):
    script = f"""
        fetch() {{ for i in 1 2 3 4 5; do timeout 10 wget -q -O - http://$gw:8000/body | {SUM_SCRIPT} | grep {body_sum()[-64:]} && break; sleep 1; done; }}
        {GATEWAY}; fetch; echo FETCHED; read -r go
        until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.2; done
        fetch
        echo "changes $(cat /sys/class/net/eth0/carrier_changes)"
    """
    with passt_namespace(tmp) as ns:
        with busybox(engine, tmp, "--net", "user", cmdline="polder.net=dhcp", script=script, prefix=ns.prefix) as vmm:
            before = vmm.wait_for("^FETCHED$", 180).start()
            [pid] = [p for p in ns.pids() if ns.name_of(p).startswith("passt")]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: "was started again" in vmm.errors)
            vmm.send("go\n")
            text = finish(vmm)
        wait_until(lambda: not ns.processes())
    assert body_sum() in text[:before] and body_sum() in text[before:], text
    assert int(re.search(r"^changes (\d+)", text, re.M)[1]) >= 3, text
    assert vmm.errors.count("passt has ended") == 1, vmm.errors


def test_passt_that_keeps_dying_is_given_up(tmp):
    """Each start is a line of the file; the pause doubles."""
    starts = tmp / "starts"
    fake = tmp / "bin" / "passt"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\ndate +%s%N >>{starts}\necho 'out of luck' >&2\nexit 1\n")
    fake.chmod(0o755)
    with busybox("jit", tmp, "--net", "user", mode="idle", env={"PATH": f"{fake.parent}:{os.environ['PATH']}"}) as vmm:
        vmm.wait_for("^POLDER-READY", 120)
        wait_until(lambda: len(starts.read_text().splitlines()) >= 5)
        times = [int(t) for t in starts.read_text().splitlines()[:5]]
        gaps = [(b - a) / 1e9 for a, b in zip(times, times[1:])]
        assert all(gap >= 0.1 * 2 ** i for i, gap in enumerate(gaps)), gaps
        assert "passt has ended: out of luck" in vmm.errors


def test_no_network(engine, tmp):
    with busybox(engine, tmp, "--net", "none", script="ls /sys/class/net | tr '\\n' ' ' | sed 's/^/links: /'; echo") as vmm:
        assert "links: lo \n" in finish(vmm)
