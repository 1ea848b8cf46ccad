"""polder-agent: as an ordinary process on a socket, and as init of a microVM."""
import io
import os
import shutil
import subprocess
import tarfile
import time

import pytest

import agent_client
from agent_client import Agent, Refused, tar_of
from images import image
from vmm import TOP, Vmm

AGENT = TOP / "build/bin/polder-agent"
CMDLINE = "console=ttyS0 quiet panic=-1 random.trust_cpu=on"


@pytest.fixture
def agent(tmp_path):
    """An agent of its own on a socket; it and what it started end with the test."""
    process = subprocess.Popen([AGENT, "--listen", tmp_path / "socket"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    agent = Agent(tmp_path / "socket", vsock=False)
    agent.process = process
    yield agent
    assert process.poll() is None or process.returncode == 0, "the agent died"
    if process.poll() is None:
        agent.call("shutdown", timeout_ms=0)
        process.wait(10)


def shell(script, **params):
    return {"args": ["/bin/sh", "-c", script], **params}


no_vmm = pytest.mark.needs_no_vmm


@no_vmm
def test_exec_gives_output_errors_and_the_code(agent):
    assert agent.run("/bin/sh", "-c", "echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")
    assert agent.run("/bin/sh", "-c", "kill -9 $$")[0] == 128 + 9
    assert agent.run("/bin/cat", data=b"x" * 1000000) == (0, b"x" * 1000000, b"")


@no_vmm
def test_exec_has_the_environment_the_directory_and_the_user(agent, tmp_path):
    where = tmp_path / "made/here"
    code, out, _ = agent.run("/bin/sh", "-c", "pwd; echo $A $HOME; id -u; id -g", env=["A=1", "A=2"], cwd=str(where),
                             user="65534:12")
    if os.getuid() != 0:
        pytest.skip("only root changes users")
    os.chmod(tmp_path, 0o755)
    assert (code, out.decode().split("\n")[1:]) == (0, ["2 /nonexistent", "65534", "12", ""])
    assert where.is_dir()


@no_vmm
@pytest.mark.parametrize("args, code, words", [
    (["/nope"], 127, "No such file"), (["/etc/passwd"], 126, "Permission denied"), ([], None, "no program"), ([5], None, "strings")])
def test_what_cannot_be_executed_is_refused(agent, args, code, words):
    with pytest.raises(Refused, match=words) as refused:
        agent.open("exec", args=args)
    assert refused.value.code == code


@no_vmm
def test_an_unknown_user_is_refused_by_name(agent):
    with pytest.raises(Refused, match="user 'nobody-here' is not in") as refused:
        agent.open("exec", args=["/bin/true"], user="nobody-here")
    assert refused.value.code == 125


@no_vmm
def test_a_terminal_has_size_job_control_and_hangs_up(agent):
    with agent.open("exec", **shell("stty size; ps -o tty= -p $$; trap 'stty size' WINCH; echo ready; "
                                    "while :; do sleep 0.1; done", tty=True, rows=30, cols=100)) as s:
        s.wait_for(b"ready")
        assert b"30 100\r\n" in s.out and b"pts/" in s.out
        s.send(agent_client.RESIZE, {"rows": 50, "cols": 120})
        s.wait_for(b"50 120")
        s.send(agent_client.DATA_IN, b"\x03")  # ^C reaches the foreground group only if the terminal controls it
        assert s.wait() == 130
    with agent.open("exec", args=["/bin/bash", "--norc", "--noprofile", "-i"], tty=True) as s:
        s.send(agent_client.DATA_IN, b"(echo $((40 + 2)); exec sleep 100)\n")  # a job of its own before it says 42
        s.wait_for(b"42\r")
        s.send(agent_client.DATA_IN, b"\x1a")
        s.wait_for(b"Stopped")


@no_vmm
def test_closing_the_session_hangs_the_process_up(agent, tmp_path):
    s = agent.open("exec", **shell(f"trap '' PIPE; trap 'echo hup >{tmp_path}/hup; exit' HUP; echo up; while :; do sleep 0.1; done"))
    s.wait_for(b"up")
    s.close()
    deadline = time.monotonic() + 10
    while not (tmp_path / "hup").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "hup").exists()


@no_vmm
def test_signals_reach_the_process(agent):
    with agent.open("exec", **shell("trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done")) as s:
        s.wait_for(b"up")
        s.send(agent_client.SIGNAL, {"signal": "SIGUSR1"})
        assert s.wait() == 9


@no_vmm
def test_the_end_does_not_wait_for_a_grandchild_with_the_pipe(agent):
    started = time.monotonic()
    assert agent.run("/bin/sh", "-c", "sleep 8 & echo done")[:2] == (0, b"done\n")
    assert time.monotonic() - started < 6


@no_vmm
def test_a_slow_reader_holds_its_process_and_nothing_grows(agent):
    with agent.open("exec", **shell("dd if=/dev/zero bs=65536 count=2000 2>/dev/null")) as s:
        time.sleep(0.5)
        status = open(f"/proc/{agent.process.pid}/status").read()
        assert int(status.split("VmRSS:")[1].split()[0]) < 8192
        assert agent.call("ping")["state"] == "waiting"  # others are served
        s.wait()
        assert len(s.out) == 2000 * 65536 and s.code == 0


@no_vmm
def test_main_is_heard_by_those_who_attach_and_by_those_who_wait(agent):
    early, waiting = agent.open("attach", stdin=True), agent.open("wait")
    agent.call("start", process=shell("echo one; read line; echo got $line; exit 4", stdin=True))
    early.wait_for(b"one\n")
    late = agent.open("attach", history=True)
    late.wait_for(b"one\n")
    early.send(agent_client.DATA_IN, b"word\n")
    assert [s.wait() for s in (early, late, waiting)] == [4, 4, 4]
    assert early.out == late.out == b"one\ngot word\n"
    with agent.open("attach", history=True) as after:
        assert after.wait() == 4 and after.out == b"one\ngot word\n"
    assert agent.call("ping")["code"] == 4


@no_vmm
def test_a_reader_of_main_that_stops_is_left_behind_after_a_while(agent):
    stuck = agent.open("attach")
    agent.call("start", process=shell("dd if=/dev/zero bs=65536 count=100 2>/dev/null"))
    assert agent.open("wait").wait() == 0
    stuck.wait()
    assert len(stuck.out) + stuck.exit["lost_bytes"] == 100 * 65536 and stuck.exit["lost_bytes"] > 0


@no_vmm
def test_main_that_cannot_start_is_refused_and_may_be_tried_again(agent):
    with pytest.raises(Refused) as refused:
        agent.call("start", process={"args": ["/nope"]})
    assert refused.value.code == 127
    agent.call("start", process=shell("exit 0"))
    assert agent.open("wait").wait() == 0
    with pytest.raises(Refused, match="started already"):
        agent.call("start", process=shell("exit 0"))


@no_vmm
def test_shutdown_asks_then_kills_and_tells_the_code(agent):
    agent.call("start", process=shell("trap '' TERM; echo up; while :; do sleep 0.1; done"))
    with agent.open("attach", history=True) as s:
        s.wait_for(b"up")
    with agent.open("shutdown", timeout_ms=300) as s:
        assert s.wait() == 128 + 9
    assert agent.process.wait(10) == 0


@no_vmm
def test_trees_come_out_as_they_went_in(agent, tmp_path):
    long = "d" * 90 + "/" + "e" * 90 + "/" + "f" * 200
    link = tarfile.TarInfo("a/link")
    link.type, link.linkname = tarfile.SYMTYPE, "../" + "t" * 150
    hard = tarfile.TarInfo("a/hard")
    hard.type, hard.linkname = tarfile.LNKTYPE, "a/file"
    folder = tarfile.TarInfo("a/empty")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o700
    archive = tar_of(("a/file", b"content"), ("a/" + long, b"x" * 70000), ("./a/none", b""), link, hard, folder)
    assert agent.put(str(tmp_path / "in"), archive) == (0, "")
    assert (tmp_path / "in/a/hard").stat().st_ino == (tmp_path / "in/a/file").stat().st_ino
    code, out, err = agent.get(str(tmp_path / "in/a/"))
    assert (code, err) == (0, "")
    tar = tarfile.open(fileobj=io.BytesIO(out))
    assert tar.extractfile("a/" + long).read() == b"x" * 70000
    assert tar.extractfile("a/file").read() == b"content"
    assert tar.getmember("a/file").mode == 0o640 and tar.getmember("a/file").mtime == 1000000000
    assert tar.getmember("a/link").linkname == "../" + "t" * 150
    assert tar.getmember("a/empty").isdir() and tar.getmember("a/empty").mode == 0o700
    (tmp_path / "by-tar.tar").write_bytes(out)
    subprocess.run(["tar", "-tf", tmp_path / "by-tar.tar"], check=True, stdout=subprocess.DEVNULL)


@no_vmm
def test_archives_of_gnu_tar_are_understood(agent, tmp_path):
    source = tmp_path / "s"
    source.mkdir()
    (source / ("n" * 180)).write_bytes(b"1")
    (source / "plain").symlink_to("t" * 140)
    out = subprocess.run(["tar", "--format=gnu", "-C", source, "-cf", "-", "."], check=True, stdout=subprocess.PIPE).stdout
    assert agent.put(str(tmp_path / "t"), out) == (0, "")
    assert (tmp_path / "t" / ("n" * 180)).read_bytes() == b"1"
    assert os.readlink(tmp_path / "t/plain") == "t" * 140


@no_vmm
def test_an_archive_never_leads_out_of_its_directory(agent, tmp_path):
    (tmp_path / "outside").mkdir()
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "way").symlink_to(tmp_path / "outside")
    (inside / "up").symlink_to("../outside")
    link = tarfile.TarInfo("mine")
    link.type, link.linkname = tarfile.SYMTYPE, "../outside"
    for archive in (tar_of(("../outside/x", b"1")), tar_of(("a/../../outside/x", b"1")), tar_of(("way/x", b"1")),
                    tar_of(("up/x", b"1")), tar_of(link, ("mine/x", b"1")), tar_of(("/etc/polder-agent-test", b"1"))):
        agent.put(str(inside), archive)
    assert os.listdir(tmp_path / "outside") == [] and not os.path.exists("/etc/polder-agent-test")
    assert (inside / "etc/polder-agent-test").exists()


@no_vmm
def test_broken_archives_are_refused_in_one_line(agent, tmp_path):
    good = tar_of(("a", b"x" * 5000))
    for archive, words in ((b"junk" * 1000, "no tar archive"), (good[:700], "ends in the midst"), (b"", "ends in the midst")):
        code, said = agent.put(str(tmp_path / "in"), archive)
        assert code == 1 and words in said and said.count("\n") == 1
    code, _, said = agent.get(str(tmp_path / "missing"))
    assert code == 1 and "No such file" in said


@no_vmm
def test_nonsense_ends_its_session_and_nothing_else(agent):
    frames = [b"\xff" * 100, b"\x00\x00\x02\x00\x01", b"\x01\x00\x00\x00\x63x", b"\x04\x00\x00\x00\x01null",
              b"\x02\x00\x00\x00\x03hi", b"\x64\x00\x00\x00\x01" + b"[" * 100]
    for frame in frames:
        with agent.session() as s:
            s.socket.sendall(frame)
            try:
                s.receive()
                s.receive()
                pytest.fail("it answered twice")
            except (EOFError, ConnectionError, TimeoutError):
                pass
    assert agent.call("ping")["state"] == "waiting"


@no_vmm
def test_more_sessions_than_allowed_are_refused(agent):
    sessions = [agent.open("wait") for _ in range(64)]
    with pytest.raises(Refused, match="too many sessions"):
        agent.call("ping")
    for s in sessions:
        s.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert agent.call("ping")["state"] == "waiting"
            return
        except Refused:
            time.sleep(0.05)
    pytest.fail("closed sessions still count")


@no_vmm
def test_the_program_is_small_and_static(tmp_path):
    subprocess.run(["strip", "-s", "-o", tmp_path / "agent", AGENT], check=True)
    assert (tmp_path / "agent").stat().st_size < 1 << 20
    assert b"INTERP" not in subprocess.run(["readelf", "-lW", AGENT], check=True, stdout=subprocess.PIPE).stdout


BUSYBOX = "sh ls cat echo sleep id env ps mount ip hostname stty kill dd true wc head date md5sum touch sync".split()


@pytest.fixture(scope="module")
def root_image(tmp_path_factory):
    """A read-only erofs root of busybox, as an image's."""
    top = tmp_path_factory.mktemp("root")
    root = top / "tree"
    for name in ("bin", "etc", "root", "var", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    for name in BUSYBOX:
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nuser:x:1000:\naudio:x:29:user\n")
    subprocess.run(["mkfs.erofs", top / "root.erofs", root], check=True, stdout=subprocess.DEVNULL)
    return top / "root.erofs"


def ext4(path):
    with open(path, "wb") as f:
        f.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", path], check=True)
    return path


class MicroVm(Vmm):
    """A microVM on the jit with two disks, a volume and a network interface."""

    def __init__(self, tmp, root_image, upper, volume=None, *more):
        boot = image("microvm")
        disks = [f"{root_image},format=raw,ro", f"{upper},format=raw"] + ([f"{volume},format=raw"] if volume else [])
        (tmp / "vsock").unlink(missing_ok=True)
        super().__init__("--engine", "jit", "--kernel", boot / "vmlinuz", "--initrd", boot / "initramfs.cpio", "--memory", "192M",
                         "--cmdline", CMDLINE, *(w for d in disks for w in ("--disk", d)), "--vsock",
                         f"cid=3,path={tmp}/vsock", "--virtio-console", f"file={tmp}/log", "--rng", "--balloon", "0", *more)
        self.agent = Agent(tmp / "vsock", vsock=True)


def start(agent, **process):
    agent.call("start", hostname="web", time_ns=time.time_ns(), process=process)


def test_a_microvm_from_start_to_exit_code(tmp_path, root_image):
    upper, volume = ext4(tmp_path / "upper"), ext4(tmp_path / "volume")
    with MicroVm(tmp_path, root_image, upper, volume, "--net", "user,mac=02:00:00:00:00:05") as vm:
        with vm.agent.open("attach", history=True, stdin=True) as main:
            vm.agent.call("start", hostname="web", time_ns=1700000000 * 10**9, networks=[
                {"mac": "02:00:00:00:00:05", "address": "10.88.0.2/24", "gateway": "10.88.0.1", "dns": ["10.88.0.1"]}],
                mounts=[{"device": "vdc", "path": "/srv/data", "fs": "ext4", "read_only": False}],
                process=shell("date +%s; hostname; id -un; pwd; echo $K; read x; echo $x >/srv/data/file; exit 42",
                              env=["K=V"], user="user", cwd="/work", stdin=True))
            main.wait_for(b"V\n")
            seconds, *words = main.out.decode().split()
            assert 1700000000 <= int(seconds) < 1700000100 and words == ["web", "user", "/work", "V"]
            code, out, _ = vm.agent.run("/bin/sh", "-c", "ip -4 addr show eth0; ip route; cat /etc/resolv.conf /etc/hosts; echo K=$K")
            for text in ("inet 10.88.0.2/24", "default via 10.88.0.1", "nameserver 10.88.0.1", "10.88.0.2\tweb", "K=V"):
                assert text in out.decode()
            assert vm.agent.run("/bin/sh", "-c", "echo $$; exit 5")[0] == 5
            check_files_and_terminal(vm.agent)
            check_stats_and_time(vm.agent)
            vm.agent.run("/bin/sh", "-c", "ls -ld /srv/data; echo 1 >/proc/sys/kernel/printk; touch /left; busybox chmod 777 /srv/data")
            main.send(agent_client.DATA_IN, b"typed\n")
            assert main.wait() == 42
        assert vm.wait(20) == 0
        assert "polder-agent: exit 42\n" in vm.text
        assert (tmp_path / "log").read_text().splitlines()[1:] == ["web", "user", "/work", "V"]
    for disk in (upper, volume):  # unmounted: nothing is left to recover
        state = subprocess.run(["dumpe2fs", "-h", disk], check=True, text=True, capture_output=True).stdout
        assert "needs_recovery" not in state
    assert "typed" in subprocess.run(["debugfs", "-R", "cat /file", volume], text=True, capture_output=True).stdout


def check_files_and_terminal(agent):
    payload = os.urandom(300000)
    assert agent.put("/new/place", tar_of(("f", payload))) == (0, "")
    code, out, _ = agent.get("/new/place")
    assert code == 0 and tarfile.open(fileobj=io.BytesIO(out)).extractfile("place/f").read() == payload
    with agent.open("exec", args=["/bin/sh"], tty=True, rows=33, cols=99) as s:
        s.send(agent_client.DATA_IN, b"stty size; echo $((6*7)); exit 9\n")
        assert s.wait() == 9 and b"33 99" in s.out and b"42" in s.out


def check_stats_and_time(agent):
    stats = agent.call("stats")
    assert stats["cpu"]["count"] == 1 and 100 << 20 < stats["memory"]["total_bytes"] < 192 << 20
    assert {d["name"] for d in stats["disks"]} >= {"vda", "vdb", "vdc"} and stats["networks"][0]["name"] == "eth0"
    agent.call("time", time_ns=1800000000 * 10**9)
    assert agent.run("/bin/date", "+%s")[1].startswith(b"18000000")


def test_a_microvm_is_shut_down_and_keeps_what_it_wrote(tmp_path, root_image):
    upper = ext4(tmp_path / "upper")
    with MicroVm(tmp_path, root_image, upper) as vm:
        start(vm.agent, **shell("trap 'echo bye; exit 3' TERM; echo kept >/etc/kept; echo up; while :; do sleep 0.05; done"))
        with vm.agent.open("attach", history=True) as main:
            main.wait_for(b"up")
            with vm.agent.open("shutdown", timeout_ms=5000) as down:
                assert down.wait() == 3
            assert main.wait() == 3 and b"bye" in main.out
        assert vm.wait(20) == 0 and "polder-agent: exit 3\n" in vm.text
    with MicroVm(tmp_path, root_image, upper) as vm:
        with vm.agent.open("attach", history=True) as main:
            start(vm.agent, **shell("cat /etc/kept"))
            assert main.wait() == 0 and main.out == b"kept\n"
        vm.agent.call("shutdown")
        assert vm.wait(20) == 0


def test_a_microvm_without_its_disks_says_so_and_ends(tmp_path):
    boot = image("microvm")
    with Vmm("--engine", "jit", "--kernel", boot / "vmlinuz", "--initrd", boot / "initramfs.cpio", "--memory", "192M",
             "--cmdline", CMDLINE, "--vsock", f"cid=3,path={tmp_path}/vsock") as vm:
        assert vm.wait(30) == 0
        assert "polder-agent: the machine has no disk vda" in vm.text and "polder-agent: exit 125" in vm.text


def test_a_microvm_says_where_the_time_of_its_start_went(tmp_path, root_image, record_property):
    upper = ext4(tmp_path / "upper")
    with MicroVm(tmp_path, root_image, upper) as vm:
        start(vm.agent, **shell("sleep 100"))
        wall_ms = round((time.monotonic() - vm.started) * 1000)
        moments = vm.agent.call("ping")["moments_us"]
        names = list(moments)
        assert names == ["agent", "modules", "root", "listening", "start", "main"]
        assert list(moments.values()) == sorted(moments.values())
        took = ", ".join(f"{b} {(moments[b] - moments[a]) / 1000:.0f}" for a, b in zip(names, names[1:]))
        text = f"main runs {wall_ms} ms after the start; kernel {moments['agent'] / 1000:.0f}, {took}"
        record_property("boot", text)
        print(text)
        vm.agent.call("shutdown", timeout_ms=0)
        assert vm.wait(20) == 0
