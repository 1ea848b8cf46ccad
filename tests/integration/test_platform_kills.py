"""polderd killed at each point of src/control/fault.c: what the next polderd makes of what is left."""
import itertools
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from busybox_platform import SYNCED, busybox_platform, is_synced
from polderd import SCALE, TOP, ApiError

PARTS = ("create", "start", "stop", "remove")
SPEC = {"image": "busybox", "name": "victim", "memory_bytes": 128 << 20, "ports": [{"host": 8080, "guest": 80}],
        "volumes": [{"volume": "data", "path": "/srv"}]}


def points():
    """{part: [point]} as the source has them."""
    table = re.search(r"fault_names\[\] = {(.*?)NULL", (TOP / "src/control/fault.c").read_text(), re.S)[1]
    pieces = re.split(r"/\* (create|start|stop|remove) \*/", table)[1:]
    return {part: re.findall(r'"([a-z.]+)"', text) for part, text in zip(pieces[::2], pieces[1::2])}


LIVES = list(itertools.zip_longest(*(points()[part] for part in PARTS)))


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    with busybox_platform(tmp_path_factory.mktemp("faults")) as daemon:
        daemon.client.post("/v1/volumes", {"name": "data", "size_bytes": 64 << 20, "fs": "ext4"})
        yield daemon


def there(daemon):
    return next((i for i in daemon.client.get("/v1/instances") if i["name"] == "victim"), None)


def machines(daemon):
    return [pid for pid in daemon.children() if Path(f"/proc/{pid}/comm").read_text() == "polder-vmm\n"]


def links(daemon):
    """Interfaces of the daemon's namespace that machines are on."""
    out = subprocess.run(daemon.inside("ip", "-j", "link", "show", "type", "tun"), capture_output=True, text=True, check=True)
    return [link["ifname"] for link in json.loads(out.stdout or "[]") if link]


def do(daemon, point, method, path, document=None, **query):
    """The call, with polderd killed at `point` on the way (None: not at all) and another one after it."""
    if not point:
        daemon.client.do(method, path, document, **query)
        return
    daemon.stop()
    daemon.start("--fault", point)
    try:
        daemon.client.do(method, path, document, **query)
    except (OSError, ApiError, AssertionError, subprocess.SubprocessError, ValueError):
        pass  # it died: how is said below
    assert daemon.process.wait(30 * SCALE) == -signal.SIGKILL, f"polderd did not come to {point}"
    daemon.start()


def nothing_held(daemon):
    system = daemon.client.get("/v1/system")
    return (not machines(daemon) and not links(daemon) and system["admission"]["memory"]["reserved_bytes"] == 0
            and not daemon.client.get("/v1/volumes/data").get("used_by"))


@pytest.mark.parametrize("create, start, stop, remove", LIVES, ids=["-".join(filter(None, life)) for life in LIVES])
def test_killed_at_each_point(platform, create, start, stop, remove):
    line = start or stop or remove
    command = ["sh", "-c", f"echo {line} >>/srv/log; {SYNCED}; exec sleep 1000"]
    do(platform, create, "POST", "/v1/instances", {**SPEC, "command": command})
    if create == "create.image":
        assert not there(platform)
        do(platform, None, "POST", "/v1/instances", {**SPEC, "command": command})
    assert there(platform)["status"]["state"] == "created" and nothing_held(platform)
    folder = f"instances/{there(platform)['id']}"

    do(platform, start, "POST", "/v1/instances/victim/start", {})
    platform.until(lambda: there(platform)["status"]["state"] == "running")
    assert len(machines(platform)) == 1 and len(links(platform)) == 1
    platform.until(lambda: is_synced(platform, "victim"))

    if stop == "stop.killed":
        os.kill(machines(platform)[0], signal.SIGSTOP)  # it does not end when it is told to
    do(platform, stop, "POST", "/v1/instances/victim/stop", {"timeout_s": 5 if stop == "stop.asked" else 0})
    platform.until(lambda: there(platform)["status"]["state"] == "stopped")
    platform.until(lambda: nothing_held(platform))

    do(platform, remove, "DELETE", "/v1/instances/victim")
    platform.until(lambda: not there(platform))
    assert not (platform.state / folder).exists() and not (platform.run / folder).exists()
    assert platform.client.get("/v1/networks/default")["leases"] == []


def test_the_volume_has_what_all_of_them_wrote(platform):
    """And keeps what was synced when polder-vmm is killed."""
    script = f"echo last >>/srv/log; {SYNCED}; exec sleep 1000"
    platform.client.do("POST", "/v1/instances", {**SPEC, "command": ["sh", "-c", script], "start": True})
    platform.until(lambda: is_synced(platform, "victim"))
    os.kill(machines(platform)[0], signal.SIGKILL)
    platform.until(lambda: there(platform)["status"]["state"] == "failed" and nothing_held(platform))
    platform.client.do("POST", "/v1/instances/victim/start", {})
    lines = platform.polder("exec", "victim", "--", "cat", "/srv/log")[0].split()
    assert lines.count("last") >= 1
    assert [line for line, _ in itertools.groupby(lines) if line != "last"] == [life[1] or life[2] or life[3] for life in LIVES]
    platform.client.do("DELETE", "/v1/instances/victim", force="true")


def test_a_point_that_is_none_is_refused(platform):
    done = subprocess.run([platform.binary, "--fault", "nope"], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (2, "polderd: --fault: there is no point 'nope'\n")
    shown = subprocess.run([platform.binary, "--help"], capture_output=True, text=True, timeout=20, check=True).stdout
    assert "--fault" not in shown
