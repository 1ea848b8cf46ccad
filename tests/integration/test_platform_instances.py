"""Instances without the daemon: the controller with real machines on jit, opened anew for each call (instances/drive.c)."""
import json
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("POLDER_BUILD", TOP / "build"))
DRIVE = BIN / "tests/integration/instances/drive"
BUSYBOX = shutil.which("busybox")
if os.geteuid() != 0 or not BUSYBOX or not DRIVE.exists():
    pytest.skip("needs root, busybox and the built driver", allow_module_level=True)


def make_layer(path):
    """A layer with a static busybox."""
    applets = ["sh", "true", "false", "echo", "cat", "sleep", "env", "hostname", "id", "sync", "reboot", "kill"]
    with tarfile.open(path, "w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        for name in applets:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for name in ("tmp", "proc", "sys", "dev", "etc"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)


def machines():
    """Pids of polder-vmm by the id of their instance; no instance has two."""
    found = {}
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            words = (proc / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"polder-vmm") and b"--id" in words:
            name = words[words.index(b"--id") + 1].decode()
            assert name not in found
            found[name] = int(proc.name)
    return found


class Platform:
    def __init__(self, folder, guest):
        self.folder, self.guest = folder, guest

    def command(self, *args):
        env = {**os.environ, "PATH": f"{BIN}/bin:{os.environ['PATH']}"}
        return [DRIVE, self.folder, self.guest, *args], env

    def call(self, *args, timeout=60):
        words, env = self.command(*args)
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=timeout, check=False)

    def ok(self, *args):
        done = self.call(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, name):
        return json.loads(self.ok("get", name))

    def create(self, name, command, **more):
        spec = {"image": "busybox", "name": name, "command": command, "memory_bytes": 128 << 20, "networks": [], **more}
        return json.loads(self.ok("create", json.dumps(spec)))

    def run(self, name, command, **more):
        spec = {"image": "busybox", "name": name, "command": command, "memory_bytes": 128 << 20, "networks": [], **more}
        return self.call("run", json.dumps(spec), name)


@pytest.fixture(scope="module")
def guest():
    built = subprocess.run([TOP / "tools/guest-image/build", "microvm"], capture_output=True, text=True, timeout=300,
                           check=True)
    return built.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def base(tmp_path_factory, guest):
    folder = tmp_path_factory.mktemp("platform")
    layer = folder / "layer.tar"
    make_layer(layer)
    platform = Platform(folder, guest)
    platform.ok("image", "busybox", layer)
    return platform


@pytest.fixture
def platform(base):
    yield base
    mine = {doc["id"] for doc in json.loads(base.ok("list"))}
    for doc in json.loads(base.ok("list")):
        base.ok("rm", doc["name"])
    assert not json.loads(base.ok("list"))
    assert not mine & machines().keys()
    for top in (base.folder / "instances", base.folder / "run/instances"):
        assert not top.exists() or not list(top.iterdir())


def test_runs_and_gives_its_code(platform):
    done = platform.run("one", ["sh", "-c", "echo $FROM_IMAGE $MINE; hostname; exit 7"], env=["MINE=2"])
    assert (done.returncode, done.stdout) == (7, "1 2\none\n"), done.stderr
    assert platform.call("wait", "one").returncode == 7
    doc = platform.get("one")
    assert (doc["status"]["state"], doc["status"]["exit_code"], doc["desired"]) == ("stopped", 7, "stopped")
    assert platform.ok("logs", "one").replace("\r", "") == "1 2\none\n"


def test_unknown_command(platform):
    done = platform.run("lost", ["/bin/nope"])
    assert done.returncode == 125
    assert platform.get("lost")["status"]["exit_code"] == 127


def test_removes_itself(platform):
    done = platform.run("brief", ["true"], remove=True)
    assert done.returncode == 0, done.stderr
    platform.ok("settle", "3000")
    assert platform.call("get", "brief").returncode == 125


def test_is_taken_over_and_stopped(platform):
    doc = platform.create("long", ["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"])
    platform.ok("start", "long")
    pid = machines()[doc["id"]]
    assert platform.call("exec", "long", "sh", "-c", "exit 3").returncode == 3
    platform.ok("pause", "long")
    assert platform.get("long")["status"]["state"] == "paused"
    platform.ok("resume", "long")
    platform.ok("rename", "long", "longer")
    assert machines()[doc["id"]] == pid
    assert json.loads(platform.ok("stats", "longer"))["memory_bytes"] > 10 << 20
    platform.ok("stop", "longer", "10")
    assert platform.get("longer")["status"]["exit_code"] == 5
    assert doc["id"] not in machines()


def test_kill_and_a_vmm_that_dies(platform):
    doc = platform.create("victim", ["sleep", "1000"])
    platform.ok("start", "victim")
    os.kill(machines()[doc["id"]], signal.SIGKILL)
    platform.ok("settle", "500")
    assert platform.get("victim")["status"]["state"] == "failed"
    platform.ok("start", "victim")
    platform.ok("kill", "victim")
    assert platform.get("victim")["status"]["exit_code"] == 137


def test_restarts_on_failure(platform):
    script = "n=$(cat /n 2>/dev/null || echo 0); n=$((n + 1)); echo $n >/n; sync; [ $n -ge 3 ] && exit 0; exit 9"
    platform.create("again", ["sh", "-c", script], restart="on-failure")
    platform.ok("start", "again")
    assert platform.call("wait", "again").returncode == 0
    assert platform.get("again")["status"]["restarts"] == 2


def test_ends_while_nobody_looks(platform):
    platform.create("alone", ["sh", "-c", "sleep 2; exit 42"])
    platform.ok("start", "alone")
    time.sleep(6)
    assert platform.call("wait", "alone").returncode == 42


def test_snapshots_and_clone(platform):
    platform.create("disk", ["sleep", "1000"])
    platform.ok("start", "disk")
    platform.ok("exec", "disk", "sh", "-c", "echo old >/f; sync")
    platform.ok("snapshot", "create", "disk", "s1")
    platform.ok("exec", "disk", "sh", "-c", "echo new >/f; sync")
    platform.ok("clone", "disk", "copy")
    assert platform.call("snapshot", "restore", "disk", "s1").returncode == 125
    platform.ok("stop", "disk", "0")
    platform.ok("snapshot", "restore", "disk", "s1")
    for name, text in (("disk", "old\n"), ("copy", "new\n")):
        platform.ok("start", name)
        assert platform.ok("exec", name, "cat", "/f") == text
    names = [one["name"] for one in json.loads(platform.ok("snapshot", "ls", "disk"))]
    assert names == ["s1"]
    platform.ok("snapshot", "rm", "disk", "s1")


def test_converges_after_kills_at_random(platform):
    chance = random.Random(5)
    platform.create("chaos", ["sleep", "1000"])
    for round_ in range(12):
        words, env = platform.command(*(("start", "chaos") if round_ % 2 == 0 else ("stop", "chaos", "0")))
        with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            time.sleep(chance.random() * 0.4)
            child.kill()
        machines()
    for _ in range(100):  # refused until the last "stop" has been carried out
        started = platform.call("start", "chaos")
        if "the instance is stopping" not in started.stderr:
            break
        platform.ok("settle", "250")
    assert started.returncode == 0, started.stderr
    assert platform.call("exec", "chaos", "true").returncode == 0


def test_five_at_once(platform):
    names = [f"m{i}" for i in range(5)]
    for name in names:
        platform.create(name, ["sleep", "1000"])
    platform.ok("start-all", *names)
    assert len({doc["id"] for doc in json.loads(platform.ok("list"))} & machines().keys()) == 5
