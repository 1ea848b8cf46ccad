"""virtio-net through a tap in a network namespace of the test's own, and through passt."""
import http.server
import os
import shutil
import subprocess
import threading
import time

import pytest

from guests import busybox, finish

HOST, GUEST = "10.213.0.1", "10.213.0.2"
BODY = b"0123456789abcdef" * 65536  # 1 MiB
SUM_SCRIPT = "sha256sum | cut -d' ' -f1 | sed 's/^/BODY /'"


def body_sum():
    import hashlib
    return "BODY " + hashlib.sha256(BODY).hexdigest()


class Namespace:
    """A network namespace with a tap and an HTTP server in it."""

    def __init__(self, folder):
        self.name = f"polder-test-{os.getpid()}"
        self.server = None
        self.folder = folder

    def command(self, *argv, **kw):
        return subprocess.run(["ip", "netns", "exec", self.name, *argv], capture_output=True, text=True, **kw)

    def __enter__(self):
        made = subprocess.run(["ip", "netns", "add", self.name], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"cannot make a network namespace: {made.stderr.strip()}")
        try:
            for line in ("link set lo up", "tuntap add tap0 mode tap vnet_hdr", f"addr add {HOST}/24 dev tap0", "link set tap0 up"):
                done = self.command("ip", *line.split())
                if done.returncode:
                    pytest.skip(f"cannot make a tap: {done.stderr.strip()}")
            self.folder.mkdir()
            (self.folder / "body").write_bytes(BODY)
            self.server = subprocess.Popen(["ip", "netns", "exec", self.name, "python3", "-m", "http.server", "8000", "-b", HOST],
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


def test_tap_both_ways(engine, tmp):
    script = f"""
        for i in 1 2 3 4 5 6 7 8 9 10; do ping -c 1 -W 2 {HOST} >/dev/null && break; done
        ping -c 3 -W 5 {HOST} || exit 1
        wget -q -O - http://{HOST}:8000/body | {SUM_SCRIPT}
        mkdir /tmp/www && head -c 1M /dev/zero >/tmp/www/zeros && httpd -p 8080 -h /tmp/www
        echo GUEST-UP; read -r done
    """
    with Namespace(tmp / "www") as ns:
        links = ns.links()
        with busybox(engine, tmp, "--net", "tap=tap0", cmdline=f"polder.net={GUEST}/24,{HOST}", script=script,
                     prefix=("ip", "netns", "exec", ns.name)) as vmm:
            vmm.wait_for("^GUEST-UP$", 180)
            ping = ns.command("ping", "-c", "3", "-W", "10", GUEST)
            fetched = ns.command("curl", "-s", "-m", "60", "-o", tmp / "zeros", f"http://{GUEST}:8080/zeros")
            vmm.send("done\n")
            text = finish(vmm)
        assert ns.links() == links
    assert body_sum() in text, text
    assert ping.returncode == 0, ping.stdout
    assert fetched.returncode == 0 and (tmp / "zeros").read_bytes() == bytes(1 << 20)


@pytest.fixture
def web_server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def has_default_route():
    return bool(subprocess.run(["ip", "-4", "route", "show", "default"], capture_output=True, text=True).stdout.strip())


def passt_processes():
    return subprocess.run(["pgrep", "-c", "-x", "passt|passt.avx2"], capture_output=True, text=True).stdout.strip()


def test_passt_http_to_the_host(engine, tmp, web_server):
    if not shutil.which("passt"):
        pytest.skip("passt is not installed")
    if not has_default_route():
        pytest.skip("passt needs a host with a default route")
    script = f"""
        gw=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'); echo "gateway $gw"
        wget -q -O - http://$gw:{web_server}/body | {SUM_SCRIPT}
    """
    before = passt_processes()
    with busybox(engine, tmp, "--net", "user", cmdline="polder.net=dhcp", script=script) as vmm:
        text = finish(vmm, 180)
    assert body_sum() in text, text
    time.sleep(0.5)
    assert passt_processes() == before


def test_passt_ping_the_gateway(engine, tmp):
    if not shutil.which("passt") or not has_default_route():
        pytest.skip("no passt, or no default route")
    low, high = map(int, open("/proc/sys/net/ipv4/ping_group_range").read().split())
    if not low <= os.getgid() <= high:
        pytest.skip("net.ipv4.ping_group_range does not let passt ping")
    script = "gw=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'); ping -c 3 -W 5 $gw"
    with busybox(engine, tmp, "--net", "user", cmdline="polder.net=dhcp", script=script) as vmm:
        assert " 0% packet loss" in finish(vmm, 180)


def test_no_network(engine, tmp):
    with busybox(engine, tmp, "--net", "none", script="ls /sys/class/net | tr '\\n' ' ' | sed 's/^/links: /'") as vmm:
        assert "links: lo \n" in finish(vmm) + "\n"
