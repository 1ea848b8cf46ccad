"""Networks without a daemon: network-driver drives the library within a network namespace of the test's own.

Stand-ins for guests are network namespaces whose eth0 is a tap that a process connects to the attachment's fd, as
polder-vmm would; the "world" is one more namespace behind a veth.
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
DRIVER = TOP / "build/tests/integration/network/network-driver"
PREFIX = f"pnt{os.getpid() % 100000}"

pytestmark = pytest.mark.needs_no_vmm

DHCP_SCRIPT = """#!/bin/sh
case "$1" in
deconfig) ip link set eth0 up ;;
bound) ip addr replace "$ip/$mask" dev eth0; ip route replace default via "$router"; echo "$dns $router" ;;
esac
"""


def run(*argv, check=True, timeout=15, **kwargs):
    done = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=timeout, **kwargs)
    if check and done.returncode:
        raise AssertionError(f"{argv}: {done.stdout}")
    return done.stdout


def eventually(check, seconds=6):
    end = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.05)
    return value


class Namespace:
    def __init__(self, name):
        self.name = f"{PREFIX}{name}"
        run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self):
        return f"/run/netns/{self.name}"

    def command(self, *argv):
        return ["ip", "netns", "exec", self.name, *map(str, argv)]

    def run(self, *argv, **kwargs):
        return run(*self.command(*argv), **kwargs)

    def spawn(self, *argv, **kwargs):
        return subprocess.Popen(self.command(*argv), stdin=subprocess.DEVNULL, **kwargs)

    def remove(self):
        for pid in run("ip", "netns", "pids", self.name, check=False).split():
            kill(int(pid))
        run("ip", "netns", "del", self.name, check=False)


def kill(pid):
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass


class Refused(Exception):
    def __init__(self, reply):
        super().__init__(reply["error"])
        self.code = reply["code"]


class Driver:
    """One daemon's networks."""

    def __init__(self, host, state, prefix=()):
        self.process = subprocess.Popen(host.command(*prefix, DRIVER, state), stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __call__(self, op, **members):
        self.process.stdin.write(json.dumps({"op": op, **members}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        reply = json.loads(line)
        if "error" in reply:
            raise Refused(reply)
        return reply["ok"]

    def kill(self):
        self.process.kill()
        self.close()

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()
        self.process.stderr.close()


class Guest:
    def __init__(self, driver, name, **members):
        self.ns = Namespace(name)
        self.name, self.id = name, f"id-{name}"
        self.driver = driver
        self.attachment = driver("attach", id=self.id, name=name, netns=self.ns.path, **members)
        self.address, self.mac = self.attachment["address"], self.attachment["mac"]
        self.run, self.spawn = self.ns.run, self.ns.spawn
        self.run("ip", "link", "set", "eth0", "up")

    def configure(self):
        self.run("ip", "addr", "add", f"{self.address}/{self.attachment['prefix']}", "dev", "eth0")
        self.run("ip", "route", "add", "default", "via", self.attachment["gateway"])
        return self

    def reaches(self, address, seconds=1):
        return " 0% packet loss" in self.run("ping", "-c1", f"-W{seconds}", address, check=False)

    def stop(self):
        kill(self.attachment["pid"])


class World:
    """A host namespace, a driver in it, guests, and a namespace beyond."""

    def __init__(self):
        self.namespaces, self.processes, self.guests, self.drivers = [], [], [], []
        self.state = Path(tempfile.mkdtemp(prefix="polder-networks-"))
        self.host = self.namespace("host")
        self.driver = self.start()

    def namespace(self, name):
        self.namespaces.append(Namespace(name))
        return self.namespaces[-1]

    def start(self, state=None):
        self.drivers.append(Driver(self.host, state or self.state))
        return self.drivers[-1]

    def guest(self, name, driver=None, **members):
        guest = Guest(driver or self.driver, name, **members)
        self.guests.append(guest)
        self.namespaces.append(guest.ns)
        return guest

    def serve(self, namespace, text, port=80, address="0.0.0.0"):
        folder = self.state / f"www-{namespace.name}-{port}"
        folder.mkdir()
        (folder / "index.html").write_text(text)
        self.processes.append(namespace.spawn("busybox", "httpd", "-f", "-p", f"{address}:{port}", "-h", folder))
        eventually(lambda: f":{port} " in namespace.run("ss", "-tln"))

    def outside(self):
        outside = self.namespace("world")
        self.host.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", outside.name)
        for ns, device, address in ((self.host, "uplink", "198.51.100.1/24"), (outside, "eth0", "198.51.100.2/24")):
            ns.run("ip", "addr", "add", address, "dev", device)
            ns.run("ip", "link", "set", device, "up")
        self.host.run("ip", "route", "add", "default", "via", "198.51.100.2")
        return outside

    def curl(self, url, namespace=None):
        return (namespace or self.host).run("curl", "-sS", "-m", "3", "--noproxy", "*", url, check=False)

    def links(self):
        return [line.split()[0].split("@")[0] for line in self.host.run("ip", "-br", "link").splitlines()]

    def bridge(self, name="default"):
        return self.driver("inspect", name=name)["bridge"]

    def end(self):
        for guest in self.guests:
            guest.stop()
        for process in self.processes:
            process.kill()
            process.wait()
        for driver in self.drivers:
            if driver.process.returncode is None:
                driver.close()
        for namespace in self.namespaces:
            namespace.remove()
        shutil.rmtree(self.state)


@pytest.fixture
def world():
    if os.geteuid():
        pytest.skip("bridges and nftables need root")
    world = World()
    yield world
    world.end()


def test_dhcp_and_dns_give_what_the_attachment_says(world):
    web, db = world.guest("web"), world.guest("db")
    script = world.state / "dhcp"
    script.write_text(DHCP_SCRIPT)
    script.chmod(0o755)
    for guest in (web, db):
        got = guest.run("busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-t", "5", "-T", "1", "-s", script)
        assert f"lease of {guest.address} obtained" in got
        assert "10.88.0.1 10.88.0.1" in got
    assert web.reaches(db.address)
    assert web.address in db.run("busybox", "nslookup", "web", "10.88.0.1")
    assert db.address in web.run("busybox", "nslookup", "db.default.internal", "10.88.0.1")
    world.driver("rename_instance", id=web.id, name="shop")
    eventually(lambda: web.address in db.run("busybox", "nslookup", "shop", "10.88.0.1", check=False))
    assert web.address not in db.run("busybox", "nslookup", "web", "10.88.0.1", check=False)
    world.driver("detach", id=web.id)
    eventually(lambda: web.address not in db.run("busybox", "nslookup", "shop", "10.88.0.1", check=False))


def test_dnsmasq_is_unprivileged_bound_to_its_bridge_and_lives_on(world):
    world.guest("web")
    bridge = world.bridge()
    pid = int((world.state / "networks" / bridge / "dnsmasq.pid").read_text())
    status = Path(f"/proc/{pid}/status").read_text()
    assert int(re.search(r"Uid:\s+(\d+)", status)[1]) != 0
    sockets = [line for line in world.host.run("ss", "-Hlnup").splitlines() if "dnsmasq" in line]
    assert sockets and all("10.88.0.1:53" in line or f"%{bridge}:67" in line for line in sockets)
    world.driver.kill()
    world.driver = world.start()
    world.driver("reconcile")
    assert int((world.state / "networks" / bridge / "dnsmasq.pid").read_text()) == pid
    os.kill(pid, 9)
    eventually(lambda: int((world.state / "networks" / bridge / "dnsmasq.pid").read_text() or pid) != pid)


def test_nat_and_port_forwards(world):
    ports = [{"host": 8080, "guest": 80}, {"host_address": "127.0.0.1", "host": 8081, "guest": 80},
             {"host": 5353, "guest": 53, "protocol": "udp"}]
    web = world.guest("web", ports=ports).configure()
    other = world.guest("other").configure()
    outside = world.outside()
    world.serve(web.ns, "from the guest")
    world.serve(outside, "from the world")
    for address in ("127.0.0.1:8080", "127.0.0.1:8081", "10.88.0.1:8080", "198.51.100.1:8080"):
        assert "from the guest" in world.curl(f"http://{address}/"), address
    assert "from the guest" in world.curl("http://198.51.100.1:8080/", outside)
    assert "from the guest" in world.curl("http://198.51.100.1:8080/", other.ns), "through the forward and back"
    assert "from the guest" not in world.curl("http://198.51.100.1:8081/", outside)
    assert "from the world" in world.curl("http://198.51.100.2/", web.ns)
    assert "from the guest" not in world.curl(f"http://{web.address}/", outside)
    outside.run("ip", "route", "add", "10.88.0.0/24", "via", "198.51.100.1")
    assert "from the guest" not in world.curl(f"http://{web.address}/", outside), "in by no forward"
    listener = web.spawn(sys.executable, "-c", "import socket; s = socket.socket(2, 2); s.bind(('', 53));"
                         "print(s.recvfrom(9)[0].decode(), flush=True)", stdout=subprocess.PIPE, text=True)
    world.processes.append(listener)
    eventually(lambda: ":53 " in web.run("ss", "-uln"))
    world.host.run(sys.executable, "-c", "import socket; socket.socket(2, 2).sendto(b'by udp', ('127.0.0.1', 5353))")
    assert listener.stdout.readline() == "by udp\n"
    listener.stdout.close()
    world.driver("detach", id=web.id)
    assert "from the guest" not in world.curl("http://127.0.0.1:8080/")


def test_guests_do_not_reach_the_host_or_other_networks(world):
    web = world.guest("web").configure()
    world.driver("create", spec={"name": "lan"})
    world.driver("create", spec={"name": "alone", "subnet": "192.168.77.0/24", "isolated": True})
    far = world.guest("far", entry={"network": "lan"}).configure()
    hermits = [world.guest(n, entry={"network": "alone"}).configure() for n in ("hermit", "monk")]
    assert far.address == "10.88.1.2"
    world.serve(world.host, "from the host", 8000)
    world.serve(world.host, "from loopback", 8001, "127.0.0.1")
    world.serve(far.ns, "from the other network")
    for url in ("http://10.88.0.1:8000/", "http://10.88.1.1:8000/", f"http://{far.address}/"):
        assert "from" not in world.curl(url, web.ns), url
    web.run("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
    web.run("ip", "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local")
    web.run("ip", "route", "del", "local", "127.0.0.1", "dev", "lo", "table", "local")
    web.run("ip", "route", "add", "127.0.0.1", "via", "10.88.0.1", "src", web.address)
    assert "from loopback" not in world.curl("http://127.0.0.1:8001/", web.ns)
    assert "from loopback" in world.curl("http://127.0.0.1:8001/"), "the server is there"
    assert "from the host" in world.curl("http://10.88.0.1:8000/"), "the server is there"
    assert "from the other" in world.curl(f"http://{far.address}/"), "the server is there"
    assert not web.reaches(far.address) and not far.reaches(web.address)
    assert not hermits[0].reaches(hermits[1].address)
    assert web.address not in web.run("busybox", "nslookup", "web", "10.88.1.1", check=False)
    assert far.address not in web.run("busybox", "nslookup", "far", "10.88.0.1", check=False)


SEND = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for frame in sys.argv[1:]:
    s.send(bytes.fromhex(frame))
"""
COUNT = """
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 0))
print("ready", flush=True)
s.settimeout(0.2)
end, seen = time.monotonic() + 5, []
while time.monotonic() < end:
    try: frame = s.recv(2000)
    except TimeoutError: continue
    mark = frame[-8:]
    if mark[:7] == b"frame-n": seen.append(chr(mark[7]))
    if mark == b"frame-nZ": break
print("".join(seen), flush=True)
"""


def ethernet(target, source, kind, body):
    return (bytes.fromhex(target.replace(":", "")) + bytes.fromhex(source.replace(":", "")) + kind + body)


def ipv4(source, target, mark, sport=1000, dport=9):
    udp = sport.to_bytes(2) + dport.to_bytes(2) + (16).to_bytes(2) + b"\0\0" + b"frame-n" + mark
    head = bytearray(b"\x45\0\0\x24\0\0\0\0\x40\x11\0\0" + socket.inet_aton(source) + socket.inet_aton(target))
    total = sum(int.from_bytes(head[i:i + 2]) for i in range(0, 20, 2))
    head[10:12] = (0xffff - (total % 0xffff)).to_bytes(2)
    return b"\x08\0", bytes(head) + udp


def arp(mac, address, target, mark):
    body = b"\0\1\x08\0\6\4\0\2" + bytes.fromhex(mac.replace(":", "")) + socket.inet_aton(address) + b"\0" * 6
    return b"\x08\x06", body + socket.inet_aton(target) + b"\0" * 10 + b"frame-n" + mark


def test_spoofed_frames_are_dropped(world):
    spoofer, victim = world.guest("spoofer"), world.guest("victim")
    to, me, mine, his = victim.mac, spoofer.mac, spoofer.address, victim.address
    other = "52:54:00:00:00:99"
    frames = [
        ethernet(to, me, *ipv4(mine, his, b"A")),               # as it should be
        ethernet(to, other, *ipv4(mine, his, b"b")),            # MAC
        ethernet(to, me, *ipv4("10.88.0.77", his, b"c")),       # address
        ethernet(to, me, *ipv4("10.88.0.1", his, b"d")),        # the gateway's
        ethernet(to, me, *ipv4(mine, his, b"e", sport=67, dport=68)),  # a DHCP server
        ethernet(to, me, *arp(me, mine, his, b"B")),            # as it should be
        ethernet(to, me, *arp(me, "10.88.0.1", his, b"f")),     # the gateway's address
        ethernet(to, me, *arp(other, mine, his, b"g")),         # MAC within
        ethernet(to, other, *arp(me, mine, his, b"h")),         # MAC without
        ethernet(to, me, *arp(me, "0.0.0.0", mine, b"C")),      # a probe
        ethernet(to, me, b"\x86\xdd", b"\x60" + b"\0" * 39 + b"frame-ni"),  # IPv6
        ethernet(to, me, b"\x81\0", b"\0\1" + b"".join(ipv4("10.88.0.77", his, b"j"))),  # within a VLAN
        ethernet(to, me, b"\x88\xb5", b"\0" * 40 + b"frame-nk"),  # something else
        ethernet(to, me, *ipv4("0.0.0.0", his, b"l", sport=68, dport=67)),  # not broadcast
        ethernet(to, me, *ipv4(mine, his, b"Z")),
    ]
    counter = victim.spawn(sys.executable, "-c", COUNT, stdout=subprocess.PIPE, text=True)
    world.processes.append(counter)
    assert counter.stdout.readline() == "ready\n"
    spoofer.run(sys.executable, "-c", SEND, *(f.hex() for f in frames))
    assert counter.stdout.readline().strip() == "ABCZ"
    counter.stdout.close()


def test_a_flushed_rule_set_and_a_deleted_bridge_come_back(world):
    web = world.guest("web", ports=[{"host": 8080, "guest": 80}]).configure()
    db = world.guest("db").configure()
    world.serve(web.ns, "from the guest")
    rules = world.host.run("nft", "-s", "list", "ruleset")

    def back():
        return world.host.run("nft", "-s", "list", "ruleset") == rules

    for damage in (("flush", "ruleset"), ("flush", "chain", "inet", table(rules), "between"),
                   ("delete", "table", "bridge", table(rules))):
        world.host.run("nft", *damage)
        assert not back()
        eventually(back)
    bridge = world.bridge()
    world.host.run("ip", "link", "del", bridge)
    eventually(lambda: db.reaches(web.address))
    assert "from the guest" in world.curl("http://127.0.0.1:8080/")
    eventually(lambda: web.address in db.run("busybox", "nslookup", "web", "10.88.0.1", check=False))
    world.host.run("ip", "addr", "flush", "dev", bridge)
    eventually(lambda: "from the guest" in world.curl("http://127.0.0.1:8080/"))
    world.host.run("ip", "link", "set", bridge, "down")
    eventually(lambda: db.reaches(web.address))


def table(rules):
    return re.search(r"table inet (\S+)", rules)[1]


def test_foreign_rules_are_left_alone(world):
    world.host.run("nft", "add table inet other; add chain inet other c { type filter hook input priority 5; };"
                   "add rule inet other c tcp dport 7 drop")
    before = world.host.run("nft", "list", "table", "inet", "other")
    world.guest("web", ports=[{"host": 8080, "guest": 80}])
    second = world.start(tempfile.mkdtemp(prefix="second-", dir=world.state))
    second("create", spec={"name": "default"})
    assert second("list")[0]["subnet"] == "10.88.1.0/24", "the first daemon's is seen in the host's routes"
    assert world.host.run("nft", "list", "tables").count("table inet") == 3
    second("remove", name="default")
    world.driver("release", id="id-web")
    world.driver("remove", name="default")
    assert world.host.run("nft", "list", "table", "inet", "other") == before
    assert world.host.run("nft", "list", "tables").split() == ["table", "inet", "other"]


def test_another_daemon_takes_over_and_removal_leaves_nothing(world):
    web = world.guest("web", ports=[{"host": 8080, "guest": 80}]).configure()
    world.serve(web.ns, "from the guest")
    world.driver.kill()
    assert "from the guest" in world.curl("http://127.0.0.1:8080/"), "nothing depends on the daemon"
    world.host.run("nft", "flush", "ruleset")
    world.driver = world.start()
    eventually(lambda: "from the guest" in world.curl("http://127.0.0.1:8080/"))
    with pytest.raises(Refused, match="in use by 1 interface"):
        world.driver("remove", name="default")
    with pytest.raises(Refused, match="in use by 1 interface"):
        world.driver("rename", name="default", new_name="lan")
    with pytest.raises(Refused, match="still held by a machine"):
        world.driver("attach", id=web.id, name="web")
    web.stop()
    eventually(lambda: not [link for link in world.links() if link.startswith("plt")])
    again = world.guest("web2", entry={"address": "10.88.0.9", "mac": "02:00:00:00:00:01"})
    assert (again.address, again.mac) == ("10.88.0.9", "02:00:00:00:00:01")
    for guest in (web, again):
        world.driver("release", id=guest.id)
        guest.stop()
    world.driver("rename", name="default", new_name="lan")
    assert [n["name"] for n in world.driver("list")] == ["lan"]
    world.driver("remove", name="lan")
    assert world.host.run("nft", "list", "ruleset") == ""
    eventually(lambda: world.links() == ["lo"])
    assert os.listdir(world.state / "networks") == []
    assert "dnsmasq" not in world.host.run("ss", "-lnup")


def test_requests_that_cannot_be_met(world):
    def refused(match, code, op="attach", **members):
        with pytest.raises(Refused, match=match) as caught:
            world.driver(op, **members)
        assert caught.value.code == code

    def attach(match, code, **members):
        refused(match, code, id="x", name="x", **members)

    world.driver("create", spec={"name": "small", "subnet": "10.77.0.0/29", "gateway": "10.77.0.6"})
    world.host.run("ip", "link", "add", "taken", "type", "veth", "peer", "name", "taken2")
    world.host.run("ip", "addr", "add", "10.66.0.1/16", "dev", "taken")
    world.host.run("ip", "link", "set", "taken", "up")
    small = {"network": "small"}
    first = world.guest("g0", entry=small, ports=[{"host": 8080, "guest": 80}])
    assert first.address == "10.77.0.1"
    attach("no network 'nope'", 2, entry={"network": "nope"})
    attach("gateway of network", 22, entry={**small, "address": "10.77.0.6"})
    attach("not a host address", 22, entry={**small, "address": "10.77.0.7"})
    attach("is held by another", 16, entry={**small, "address": first.address})
    attach("is held by another", 16, entry={**small, "mac": first.mac})
    attach("address of a station", 22, entry={**small, "mac": "01:00:5e:00:00:01"})
    attach("8080 of the host is forwarded to instance 'g0'", 16, entry=small, ports=[{"host_address": "127.0.0.1", "host": 8080, "guest": 1}])
    attach("none of the host's", 22, entry=small, ports=[{"host_address": "203.0.113.1", "host": 99, "guest": 1}])
    world.serve(world.host, "taken", 9000)
    attach("in use by another program", 16, entry=small, ports=[{"host": 9000, "guest": 80}])
    refused("overlaps with 10.66.0.0/16, which the host", 16, op="create", spec={"name": "a", "subnet": "10.66.7.0/24"})
    refused("which another network has", 16, op="create", spec={"name": "a", "subnet": "10.77.0.0/16"})
    refused("exists already", 17, op="create", spec={"name": "small"})
    refused("no network 'nope'", 2, op="remove", name="nope")
    for i in range(1, 5):
        assert world.driver("attach", id=f"id{i}", name=f"g{i}", entry=small)["address"] == f"10.77.0.{i + 1}"
    attach("no free address left, 5 are in use", 28, entry=small)
    world.driver("release", id="id3")
    assert world.driver("attach", id="x", name="x", entry=small)["address"] == "10.77.0.4"
    leases = world.driver("inspect", name="small")["leases"]
    assert len(leases) == 5 and len({lease["mac"] for lease in leases}) == 5


def test_user_network_goes_through_passt(world):
    outside = world.outside()
    world.serve(outside, "from the world")
    world.driver("create", spec={"name": "easy", "kind": "user"})
    guest = world.guest("web", entry={"network": "easy"}, ports=[{"host": 8080, "guest": 80}]).configure()
    assert (guest.address, guest.attachment["dns"]) == ("10.0.2.2", "10.0.2.254")
    world.serve(guest.ns, "from the guest")
    assert "from the world" in world.curl("http://198.51.100.2/", guest.ns)
    eventually(lambda: "from the guest" in world.curl("http://127.0.0.1:8080/"))
    with pytest.raises(Refused, match="8080"):
        world.driver("attach", id="y", name="y", entry={"network": "easy"}, ports=[{"host": 8080, "guest": 80}])
    pids = world.host.run("ss", "-Hltnp")
    assert "passt" in pids
    guest.stop()
    eventually(lambda: "passt" not in world.host.run("ss", "-Hltnp"))


def test_an_ordinary_user_has_user_networks(world):
    folder = world.state / "user"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    world.state.chmod(0o755)
    driver = Driver(world.host, folder, prefix=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"))
    world.drivers.append(driver)
    with pytest.raises(Refused, match="need root .* use kind user"):
        driver("available")
    with pytest.raises(Refused, match="need root"):
        driver("create", spec={"name": "lan", "kind": "nat"})
    world.outside()
    assert driver("attach", id="a", name="web")["address"] == "10.0.2.2"
    assert driver("list")[0]["kind"] == "user"
    driver("release", id="a")


def test_thirty_interfaces(world):
    started = time.monotonic()
    got = [world.driver("attach", id=f"i{i}", name=f"n{i}") for i in range(30)]
    assert len({g["address"] for g in got}) == 30 and len({g["mac"] for g in got}) == 30
    assert time.monotonic() - started < 15
