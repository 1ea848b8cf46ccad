"""Machines in their jail and held by their limits, on each engine; the limits where cgroup v2 has its controllers."""
import contextlib
import functools
import os
import time
from pathlib import Path

import pytest

from busybox_platform import SMALL, busybox_platform
from polderd import Polderd

CGROUPS = Path("/sys/fs/cgroup")
SLACK = 128 << 20  # of memory.max, for what a polder-vmm needs besides its guest's memory
ALONE = (*SMALL, "--network", "none")


class Machines:
    """One platform an engine, with two machines that idle: `light` and `heavy`, by their CPU weights of 100 and 400."""

    def __init__(self, engine, platform):
        self.engine, self.platform = engine, platform
        for name, weight in (("light", 100), ("heavy", 400)):
            platform.polder("run", "-d", "--name", name, *ALONE, "--cpu-weight", str(weight), "busybox", "sleep", "100000")

    def pid(self, name):
        return self.platform.document(name)["status"]["pid"]

    def run(self, name, script):
        self.platform.polder("exec", name, "--", "sh", "-c", script)

    def burn(self, name):
        """Until the end it takes all CPU time that it gets."""
        self.run(name, "while :; do :; done </dev/null >/dev/null 2>&1 &")


@pytest.fixture(scope="module")
def all_machines(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda engine: Machines(engine, stack.enter_context(
            busybox_platform(tmp_path_factory.mktemp(engine), "--engine", engine))))


@pytest.fixture
def machines(all_machines, engine):
    return all_machines(engine)


@pytest.fixture
def platform(machines):
    return machines.platform


def test_a_command_runs_and_its_exit_code_comes_back(platform):
    assert platform.polder("run", "--rm", *ALONE, "busybox", "echo", "hello")[0] == "hello\n"


def check_thread(folder):
    status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines())
    assert int(status["Uid"].split()[0]) >= 2000000
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0), status
    # that of the engine and that of its kind; but io_uring's are the kernel's
    assert int(status["Seccomp_filters"]) >= 2 or status["Name"].startswith("iou-"), status


def test_a_machine_is_in_its_jail(machines):
    """Its own user and namespaces, an empty root, no capability, system calls filtered by its kind, in every thread."""
    proc = Path(f"/proc/{machines.pid('light')}")
    for task in (proc / "task").iterdir():
        check_thread(task)
    assert os.listdir(proc / "root") == []
    for kind in ("user", "mnt", "pid", "ipc", "net", "uts"):
        assert os.readlink(proc / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}"), kind
    kvm = {"/dev/kvm", "anon_inode:kvm-vm"} & {os.readlink(file) for file in (proc / "fd").iterdir()}
    assert len(kvm) == (2 if machines.engine == "kvm" else 0)


def test_a_jailed_machine_pauses_and_restarts(machines, platform):
    """What a filter that is too narrow would kill it for."""
    pid = machines.pid("light")
    for action in ("pause", "resume"):
        platform.polder(action, "light")
    started = platform.log().count("the guest has restarted")
    platform.polder("exec", "light", "--", "reboot", "-f", status=None)
    platform.until(lambda: platform.log().count("the guest has restarted") > started, timeout=60)
    platform.until(lambda: platform.document("light")["status"]["state"] == "running", timeout=60)
    machines.run("light", "true")
    assert machines.pid("light") == pid


def controllers():
    file = CGROUPS / "cgroup.controllers"
    return set(file.read_text().split()) if file.exists() else set()


def test_doctor_says_whether_limits_are_the_kernels(platform):
    checks = {c["name"]: c for c in platform.client.get("/v1/system/doctor")}
    assert checks["cgroups"]["ok"] == ({"cpu", "memory", "pids"} <= controllers()), checks["cgroups"]
    assert checks["cgroups"]["ok"] or checks["cgroups"]["cure"]


def test_a_user_with_a_group_of_its_own_has_limits(engine, needs_controllers):
    """As systemd makes one for Delegate=yes: the daemon alone is in it, which the kernel takes for an obstacle."""
    group, user = CGROUPS / "delegated", 65534
    group.mkdir()
    (CGROUPS / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    for file in (group, group / "cgroup.procs", group / "cgroup.subtree_control"):
        os.chown(file, user, user)
    enter = f'echo $$ >{group}/cgroup.procs; exec setpriv --reuid {user} --regid {user} --clear-groups "$@"'
    try:
        daemon = Polderd("--engine", engine, prefix=("sh", "-c", enter, "sh"))
        os.chown(daemon.home, user, user)
        with daemon:
            check, = (c for c in daemon.client.get("/v1/system/doctor") if c["name"] == "cgroups")
            assert check["ok"], check
    finally:
        for folder in (*group.iterdir(), group):
            if folder.is_dir():
                folder.rmdir()


class Group:
    """The cgroup of a machine."""

    def __init__(self, pid):
        path, = (line[3:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
        self.folder = CGROUPS / path.strip("/")

    def read(self, name):
        return (self.folder / name).read_text().strip()

    def write(self, name, value):
        (self.folder / name).write_text(value)

    def count(self, name, key):
        return int(dict(line.split() for line in self.read(name).splitlines())[key])


@pytest.fixture
def needs_controllers():
    if missing := {"cpu", "memory", "pids"} - controllers():
        pytest.skip(f"cgroup v2 has no controller {', '.join(sorted(missing))} here")


def used_us(groups, seconds):
    """CPU time that each used while `us` went by: (us, [us...])."""
    def look():
        return time.monotonic_ns() // 1000, [group.count("cpu.stat", "usage_usec") for group in groups]

    (began, before), _, (ended, after) = look(), time.sleep(seconds), look()
    return ended - began, [b - a for a, b in zip(before, after)]


def test_cpu_time_is_limited(machines, needs_controllers):
    """A guest that takes all it gets, with the limit of its instance and with a lower one."""
    group = Group(machines.pid("heavy"))
    assert (group.read("cpu.max"), group.read("cpu.weight"), group.read("pids.max")) == ("100000 100000", "400", "256")
    machines.burn("heavy")
    passed, (used,) = used_us([group], 3)
    assert used <= passed + 100000, (used, passed)
    throttled = group.count("cpu.stat", "nr_throttled")
    group.write("cpu.max", "20000 100000")
    passed, (used,) = used_us([group], 5)
    group.write("cpu.max", "100000 100000")
    assert used <= passed // 5 + 40000, (used, passed)
    assert group.count("cpu.stat", "nr_throttled") > throttled


def test_cpu_time_is_shared_by_weight(machines, needs_controllers):
    pids = [machines.pid(name) for name in ("light", "heavy")]
    for name in ("light", "heavy"):
        machines.burn(name)
    for pid in pids:  # they have one CPU between them
        for task in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(task), {0})
    passed, (light, heavy) = used_us([Group(pid) for pid in pids], 5)
    assert heavy > 2 * light and light + heavy > passed // 4, (light, heavy, passed)


def test_memory_is_limited(machines, platform, needs_controllers):
    """All of the guest's memory is charged to its group; a machine that takes more than its limit is ended, and no other."""
    group = Group(machines.pid("light"))
    limit = int(group.read("memory.max"))
    assert 128 << 20 < limit - SLACK < 256 << 20
    machines.run("light", "mkdir -p /m && mount -t tmpfs none /m && dd if=/dev/zero of=/m/file bs=1M count=32")
    assert 32 << 20 <= int(group.read("memory.current")) <= limit
    group.write("memory.max", str(24 << 20))
    status = platform.until(lambda: (s := platform.document("light")["status"])["state"] == "failed" and s)
    assert "more memory than its limit" in status["error"], status
    machines.run("heavy", "true")
