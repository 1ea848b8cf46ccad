"""The REST API and config files, as Firecracker's clients use them."""
import json
import os
import socket
import stat
import subprocess
import threading
import time

import pytest

from api_client import Client, UnixConnection
from guests import CMDLINE
from images import image, initramfs
from vmm import BINARY, SCALE, Vmm

BEFORE = "The requested operation is not supported before starting the microVM."
AFTER = "The requested operation is not supported after starting the microVM."


@pytest.fixture
def api(tmp):
    """A polder-vmm that waits for its configuration."""
    path = tmp / "api.sock"
    with Vmm("--api-sock", path, "--id", "test-1") as vmm:
        client = Client(path)
        client.vmm = vmm
        yield client


@pytest.fixture
def machine(engine, tmp):
    """The same, with a kernel, a root disk and a way to start; not started."""
    path = tmp / "api.sock"
    disk = tmp / "disk"
    disk.write_bytes(b"first".ljust(1 << 20, b"\0"))
    with Vmm("--api-sock", path, "--console", "stdio") as vmm:
        client = Client(path)
        client.vmm = vmm
        client.put("/machine-config", vcpu_count=1, mem_size_mib=256, engine=engine)
        client.put("/drives/rootfs", drive_id="rootfs", path_on_host=str(disk), is_root_device=True, is_read_only=False)
        client.put("/metrics", metrics_path=str(tmp / "metrics"))
        yield client


def start(client, tmp, script=None, mode="idle"):
    mode = "run" if script else mode
    client.put("/boot-source", kernel_image_path=str(image("busybox") / "vmlinuz"), initrd_path=str(initramfs(tmp, script)),
               boot_args=f"{CMDLINE} pci=off polder.test={mode}")
    client.put("/actions", action_type="InstanceStart")


# ---- the server ----

def test_socket_is_private_and_removed(tmp):
    path = tmp / "api.sock"
    with Vmm("--api-sock", path) as vmm:
        Client(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        vmm.process.terminate()
        vmm.wait()
    assert not path.exists()


def test_connection_is_kept(api):
    connection = UnixConnection(api.path)
    for _ in range(3):
        connection.request("GET", "/version")
        response = connection.getresponse()
        assert response.status == 200 and response.getheader("Content-Type") == "application/json"
        assert json.loads(response.read())["firecracker_version"].startswith("1.")
    connection.close()


def test_chunked_body(api):
    connection = UnixConnection(api.path)
    connection.request("PUT", "/entropy", iter([b"{", b"}"]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    assert connection.getresponse().status == 204
    connection.close()


def test_body_beyond_the_limit(api):
    answer = api.call("PUT", "/entropy", raw=" " * 51201)
    assert answer.status == 413 and "larger than the limit of 51200" in answer.fault
    assert api.call("PUT", "/entropy", raw="{}".ljust(51200)).status == 204


def test_endless_chunked_body_ends_the_connection(api):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30 * SCALE)
        sock.connect(str(api.path))
        sock.sendall(b"PUT /entropy HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(10000):
                sock.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
    assert api.get("/")["state"] == "Not started"


def test_garbage_and_silence_do_not_stop_it(api):
    silent = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for sock in silent:
        sock.connect(str(api.path))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30 * SCALE)
        sock.connect(str(api.path))
        sock.sendall(os.urandom(4096) + b"\r\n\r\n")
    assert api.get("/")["state"] == "Not started"
    for sock in silent:
        sock.close()


def test_many_clients(api):
    faults = []

    def work(number):
        try:
            for i in range(20):
                api.put("/machine-config", vcpu_count=1 + i % 4, mem_size_mib=128 + number)
        except Exception as fault:  # reported in the test's own thread
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


# ---- before the start ----

def test_instance(api):
    info = api.get("/")
    assert info["id"] == "test-1" and info["state"] == "Not started" and info["vmm_version"] and info["app_name"]


def test_machine_config(api):
    assert api.get("/machine-config").items() >= {"vcpu_count": 1, "mem_size_mib": 128, "smt": False}.items()
    api.refused("PUT", "/machine-config", {"mem_size_mib": 128}, "missing field `vcpu_count`")
    api.refused("PUT", "/machine-config", {"vcpu_count": 2}, "missing field `mem_size_mib`")
    api.refused("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 2**64}, "deserializing the json body")
    api.refused("PUT", "/machine-config", {"vcpu_count": -2, "mem_size_mib": 128}, "vcpu_count")
    api.refused("PATCH", "/machine-config", {"smt": "yes"}, "invalid type")
    api.refused("PATCH", "/machine-config", {"mem_size_mib": 0}, "mem_size_mib")
    api.refused("PATCH", "/machine-config", {"cpu_template": "T2"}, "cpu_model")
    api.put("/machine-config", vcpu_count=2, mem_size_mib=256, track_dirty_pages=True)
    api.patch("/machine-config", vcpu_count=4)
    config = api.get("/machine-config")
    assert config.items() >= {"vcpu_count": 4, "mem_size_mib": 256, "track_dirty_pages": True}.items()
    assert api.put("/machine-config", vcpu_count=1, mem_size_mib=128, cpu_template="None").headers["Deprecation"] == "true"
    assert api.get("/machine-config")["track_dirty_pages"] is False


def test_paths_and_methods(api):
    api.refused("GET", "/nothing", None, "Invalid request method and/or path: GET nothing.")
    api.refused("PATCH", "/boot-source", {"kernel_image_path": "x"}, "Invalid request method")
    api.refused("PATCH", "/logger", {"level": "Error"}, "Invalid request method")
    api.refused("POST", "/actions", {}, "Invalid request method")
    api.refused("PUT", "/drives/a-b", {}, "alphanumeric")
    api.refused("PUT", "/drives", {}, "The ID cannot be empty.")
    assert "Empty PUT request." in api.call("PUT", "/vsock").fault
    assert "cannot have a body" in api.call("GET", "/", {}).fault
    assert "line 1 column" in api.call("PUT", "/vsock", raw='{"guest_cid": }').fault


def test_unknown_fields_are_named(api):
    api.refused("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v", "port": 1}, "unknown field `port`", "`uds_path`")
    api.refused("PUT", "/drives/a", {"drive_id": "a", "is_root_device": False, "rate_limiter": {"bytes": {}}},
                "unknown field `bytes`", "`bandwidth`")
    api.refused("PUT", "/actions", {"action_type": "Explode"}, "unknown variant `Explode`", "`InstanceStart`")


def test_drives(api, tmp):
    disk = tmp / "disk"
    disk.write_bytes(bytes(4096))
    api.put("/drives/data", drive_id="data", path_on_host=str(disk), is_root_device=False, io_engine="Async")
    api.put("/drives/root", drive_id="root", path_on_host=str(disk), is_root_device=True, is_read_only=True,
            rate_limiter={"bandwidth": {"size": 1000, "refill_time": 100, "one_time_burst": 5}, "ops": None})
    api.refused("PUT", "/drives/data", {"drive_id": "data", "path_on_host": str(disk), "is_root_device": True},
                "A root block device already exists")
    api.refused("PUT", "/drives/data", {"drive_id": "data", "path_on_host": "/nope", "is_root_device": False}, "/nope",
                "No such file")
    api.refused("PUT", "/drives/data", {"drive_id": "other", "path_on_host": str(disk), "is_root_device": False},
                "does not match")
    drives = api.get("/vm/config")["drives"]
    assert [d["drive_id"] for d in drives] == ["root", "data"]
    assert drives[0]["rate_limiter"] == {"bandwidth": {"size": 1000, "refill_time": 100, "one_time_burst": 5}, "ops": None}


def test_interfaces(api):
    api.put("/network-interfaces/eth0", iface_id="eth0", host_dev_name="tap0", guest_mac="06:00:00:00:00:01")
    api.refused("PUT", "/network-interfaces/eth1",
                {"iface_id": "eth1", "host_dev_name": "tap1", "guest_mac": "06:00:00:00:00:01"},
                "The MAC address is already in use: 06:00:00:00:00:01")
    api.put("/network-interfaces/eth1", iface_id="eth1", backend="user")
    assert [n["backend"] for n in api.get("/vm/config")["network-interfaces"]] == ["tap", "user"]


def test_what_is_not_there_says_so(api):
    for method, path, body in [("PUT", "/mmds", {}), ("GET", "/mmds", None), ("PUT", "/cpu-config", {}),
                               ("PUT", "/mmds/config", {"network_interfaces": ["eth0"]}),
                               ("PUT", "/pmem/p", {"id": "p", "path_on_host": "/x"}), ("GET", "/hotplug/memory", None),
                               ("PUT", "/snapshot/load", {"snapshot_path": "/x"})]:
        api.refused(method, path, body, "is not there yet")


def test_only_after_the_start(api):
    for method, path, body in [("PATCH", "/vm", {"state": "Paused"}), ("PATCH", "/balloon", {"amount_mib": 1}),
                               ("GET", "/balloon/statistics", None), ("PATCH", "/drives/a", {"drive_id": "a"}),
                               ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
                               ("PUT", "/actions", {"action_type": "FlushMetrics"})]:
        api.refused(method, path, body, BEFORE)


def test_start_without_a_kernel(api):
    api.refused("PUT", "/boot-source", {"kernel_image_path": "/nope"}, "/nope", "No such file")
    api.refused("PUT", "/actions", {"action_type": "InstanceStart"}, "Cannot start microvm without kernel configuration.")
    assert api.get("/")["state"] == "Not started"


def test_start_that_fails_can_be_repaired(api, tmp):
    broken = tmp / "kernel"
    broken.write_bytes(b"not a kernel" * 1000)
    api.put("/boot-source", kernel_image_path=str(broken))
    api.refused("PUT", "/actions", {"action_type": "InstanceStart"}, "Start microvm error", str(broken))
    assert api.get("/")["state"] == "Not started"
    start(api, tmp)
    assert api.get("/")["state"] == "Running"


def test_logger(api, tmp):
    path = tmp / "log"
    api.put("/logger", log_path=str(path), level="info", show_level=True)
    api.get("/version")
    assert "GET /version: 200" in path.read_text()
    api.refused("PUT", "/logger", {"log_path": "/no/such/folder/log"}, "/no/such/folder/log")
    api.refused("PUT", "/logger", {"level": "Loud"}, "unknown variant `Loud`")
    api.put("/logger", level="Off")
    size = path.stat().st_size
    api.get("/version")
    assert path.stat().st_size == size


# ---- a machine ----

def test_life(machine, tmp):
    start(machine, tmp)
    assert machine.get("/")["state"] == "Running"
    machine.vmm.wait_for("^POLDER-READY", 120)
    machine.refused("PUT", "/actions", {"action_type": "InstanceStart"}, AFTER)
    machine.refused("PATCH", "/machine-config", {"vcpu_count": 2}, AFTER)
    machine.patch("/vm", state="Paused")
    machine.patch("/vm", state="Paused")
    assert machine.get("/")["state"] == "Paused"
    ticks = cpu_ticks(machine.vmm.pid)
    time.sleep(1)
    assert cpu_ticks(machine.vmm.pid) - ticks < 20, "a paused machine uses the CPU"
    machine.patch("/vm", state="Resumed")
    assert machine.get("/")["state"] == "Running"


def cpu_ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_power_button(machine, tmp):
    script = """
        modprobe -a evdev button
        for e in /sys/class/input/event*; do
            case $(cat $e/device/name) in "Power Button") dev=/dev/input/${e##*/} ;; esac
        done
        echo "BUTTON $dev"
        head -c 24 "$dev" | wc -c
        echo PRESSED
    """
    start(machine, tmp, script)
    assert machine.vmm.wait_for("^BUTTON (.*)$", 180)[1], "the guest sees no power button"
    time.sleep(0.5 * SCALE)
    machine.put("/actions", action_type="SendCtrlAltDel")
    machine.vmm.wait_for("^PRESSED$", 60)
    assert machine.vmm.wait(60) == 0


def test_drive_update(machine, tmp):
    other = tmp / "other"
    other.write_bytes(b"second".ljust(2 << 20, b"\0"))
    script = """
        head -c 5 /dev/vda; echo; echo "SIZE $(cat /sys/block/vda/size)"; read -r go
        echo 3 >/proc/sys/vm/drop_caches
        head -c 6 /dev/vda; echo; echo "SIZE $(cat /sys/block/vda/size)"
    """
    start(machine, tmp, script)
    machine.vmm.wait_for("^SIZE 2048$", 180)
    machine.refused("PATCH", "/drives/none", {"drive_id": "none", "path_on_host": str(other)}, "none")
    machine.refused("PATCH", "/drives/rootfs", {"drive_id": "rootfs", "is_read_only": True}, "unknown field `is_read_only`")
    machine.refused("PATCH", "/drives/rootfs", {"drive_id": "rootfs", "path_on_host": "/nope"}, "/nope")
    machine.patch("/drives/rootfs", drive_id="rootfs", path_on_host=str(other),
                  rate_limiter={"bandwidth": {"size": 100 << 20, "refill_time": 100}})
    assert machine.get("/vm/config")["drives"][0]["path_on_host"] == str(other)
    machine.vmm.send("go\n")
    machine.vmm.wait_for("^second$", 60)
    machine.vmm.wait_for("^SIZE 4096$", 60)


FORBID_IO_URING = """
import ctypes, os, struct, sys
RET, ALLOW, ERRNO_EPERM, IO_URING_SETUP = 6, 0x7fff0000, 0x00050001, 425
code = [(0x20, 0, 0, 0), (0x15, 0, 1, IO_URING_SETUP), (RET, 0, 0, ERRNO_EPERM), (RET, 0, 0, ALLOW)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter, 0, 0):
    sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[1], sys.argv[1:])
"""


def has_io_uring(pid):
    return any("io_uring" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("io_engine, forbidden, expected", [("Sync", False, "sync"), ("Async", False, "io_uring"),
                         (None, False, "io_uring"), (None, True, "sync"), ("Async", True, None)])
def test_io_engine(tmp, io_engine, forbidden, expected):
    disk = tmp / "disk"
    disk.write_bytes(b"first".ljust(1 << 20, b"\0"))
    with Vmm("--api-sock", tmp / "api.sock", "--console", "stdio", "--engine", "jit",
             prefix=("python3", "-c", FORBID_IO_URING) if forbidden else ()) as vmm:
        client = Client(tmp / "api.sock")
        client.vmm = vmm
        client.put("/machine-config", vcpu_count=1, mem_size_mib=256)
        drive = {"drive_id": "rootfs", "path_on_host": str(disk), "is_root_device": True, "io_engine": io_engine}
        client.put("/drives/rootfs", **drive)
        assert client.get("/vm/config")["drives"][0]["io_engine"] == io_engine
        script = "head -c 5 /dev/vda; echo; echo again >/dev/vda; sync; echo WRITTEN; read -r go"
        if not expected:
            with pytest.raises(AssertionError, match="rootfs.*io_uring.*'sync' works"):
                start(client, tmp, script)
            client.put("/drives/rootfs", **{**drive, "io_engine": "Sync"})
        start(client, tmp, script) if expected else client.put("/actions", action_type="InstanceStart")
        vmm.wait_for("^first$", 120)
        vmm.wait_for("^WRITTEN$", 30)
        assert has_io_uring(vmm.pid) == (expected == "io_uring")
    assert disk.read_bytes().startswith(b"again")


def test_mtu(machine, tmp):
    machine.put("/network-interfaces/eth0", iface_id="eth0", backend="user", mtu=1400)
    start(machine, tmp, 'echo "MTU $(cat /sys/class/net/eth0/mtu)"')
    machine.vmm.wait_for("^MTU 1400$", 120)


def test_metrics(machine, tmp):
    start(machine, tmp, mode="boot")
    machine.refused("PUT", "/metrics", {"metrics_path": str(tmp / "other")}, AFTER)
    machine.put("/actions", action_type="FlushMetrics")
    assert machine.vmm.wait(180) == 0
    lines = [json.loads(line) for line in (tmp / "metrics").read_text().splitlines()]
    assert len(lines) >= 2, "one by request, one at the end"
    assert lines[0]["put_api_requests"]["drive_count"] == 1
    assert lines[0]["utc_timestamp_ms"] <= lines[-1]["utc_timestamp_ms"]
    assert any("block_rootfs" in line for line in lines)
    assert (tmp / "other").exists() is False


def test_api_of_a_machine_from_the_command_line(engine, tmp):
    path = tmp / "api.sock"
    with Vmm("--engine", engine, "--kernel", image("busybox") / "vmlinuz", "--initrd", initramfs(tmp), "--memory", "256M",
             "--cmdline", f"{CMDLINE} polder.test=idle", "--console", "stdio", "--api-sock", path) as vmm:
        client = Client(path)
        vmm.wait_for("^POLDER-READY", 120)
        assert client.get("/")["state"] == "Running"
        assert client.get("/machine-config")["mem_size_mib"] == 256


# ---- config files ----

def config(tmp, **changes):
    sections = {
        "boot-source": {"kernel_image_path": str(image("busybox") / "vmlinuz"), "initrd_path": str(initramfs(tmp)),
                        "boot_args": f"{CMDLINE} pci=off polder.test=boot"},
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 256, "smt": False},
        "drives": [], "network-interfaces": [], "vsock": None, "balloon": None}
    path = tmp / "vm.json"
    path.write_text(json.dumps({**sections, **changes}))
    return path


def test_config_file_boots(engine, tmp):
    disk = tmp / "disk"
    disk.write_bytes(bytes(1 << 20))
    path = config(tmp, drives=[{"drive_id": "rootfs", "path_on_host": str(disk), "is_root_device": True}])
    with Vmm("--engine", engine, "--config-file", path, "--console", "stdio") as vmm:
        vmm.wait_for("^POLDER-INIT .*cpus=2$", 180)
        assert vmm.wait(60) == 0


@pytest.mark.parametrize("changes, parts", [
    ({"machine-config": {"vcpu_count": 2}}, ["machine-config", "missing field `mem_size_mib`"]),
    ({"machine-config": {"vcpu_count": 2, "mem_size_mib": 256, "ht": True}}, ["unknown field `ht`"]),
    ({"drives": [{"drive_id": "a", "path_on_host": "/nope", "is_root_device": False}]}, ["drives", "/nope"]),
    ({"drive": []}, ["unknown member `drive`"]),
    ({"mmds-config": {"network_interfaces": ["eth0"]}}, ["mmds-config", "not there yet"]),
])
def test_config_file_refused(tmp, changes, parts):
    path = config(tmp, **changes)
    done = subprocess.run([BINARY, "--config-file", path], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in [str(path), *parts]:
        assert part in done.stderr, done.stderr


# ---- the reference ----

@pytest.mark.needs_no_vmm
def test_reference_is_up_to_date():
    written = os.path.join(os.path.dirname(__file__), "../../docs/api/openapi.yaml")
    if not BINARY.exists():
        pytest.skip(f"{BINARY} is missing")
    with open(written) as file:
        assert file.read() == subprocess.run([BINARY, "--openapi"], capture_output=True, text=True, check=True).stdout
