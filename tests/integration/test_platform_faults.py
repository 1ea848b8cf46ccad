"""What goes wrong for a user, and what must come of it: told by the real `polder`, with machines on jit."""
import os
import re
import shutil
import signal
import subprocess

import pytest

from busybox_platform import SMALL, SYNCED, Platform, busybox_platform, is_synced
from images import image


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    with busybox_platform(tmp_path_factory.mktemp("faults")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def idle(platform):
    """An instance that only runs, with a host port."""
    platform.polder("run", "-d", "--name", "idle", "-p", "8080:80", *SMALL, "busybox", "sleep", "10000")
    return "idle"


def names(platform):
    return [instance["name"] for instance in platform.client.get("/v1/instances")]


@pytest.mark.parametrize("program, status, said", [("no-such-program", 127, "No such file"), ("/etc", 126, "Permission denied")])
def test_a_command_that_cannot_be_run(platform, idle, program, status, said):
    """As shells say it, whether it is the main process or not."""
    err = platform.polder("run", "--rm", *SMALL, "busybox", program, status=status)[1]
    assert err.startswith("polder: ") and f"{program}: {said}" in err
    err = platform.polder("exec", idle, "--", program, status=status)[1]
    assert err == f"polder: {program}: {said}" + (" or directory\n" if status == 127 else "\n")
    assert names(platform) == [idle]


@pytest.mark.parametrize("options, said", [
    (("-v", "nonesuch:/srv"), "there is no volume 'nonesuch'"),
    (("--network", "nonesuch"), "there is no network 'nonesuch'"),
    (("-p", "8080:80"), "port 8080 of the host is forwarded to instance 'idle' already"),
])
def test_what_cannot_be_made_leaves_nothing(platform, idle, options, said):
    assert said in platform.polder("run", "--name", "other", *SMALL, *options, "busybox", "true", status=1)[1]
    assert names(platform) == [idle]
    platform.polder("run", "--rm", "--name", "other", *SMALL, "busybox", "true")  # the name is free


def test_an_unknown_image_leaves_nothing(platform, idle):
    platform.polder("run", "--pull", "never", "nonesuch", "true", status=1)
    assert names(platform) == [idle]


def test_what_was_written_survives_a_sudden_end(platform):
    """On a volume, and on the root disk where the instance stays; with the guest's cache not written yet."""
    def execute(script):
        return platform.polder("exec", "writer", "--", "sh", "-c", script)[0]

    platform.polder("volume", "create", "kept")
    platform.polder("run", "-d", "--name", "writer", "-v", "kept:/srv", *SMALL, "busybox", "sleep", "10000")
    for how in (("kill", "writer"), ("stop", "-t", "0", "writer")):
        execute(f"echo {how[0]} >/srv/note; echo {how[0]} >/root/note")
        platform.polder(*how)
        platform.polder("start", "writer")
        assert execute("cat /srv/note /root/note") == f"{how[0]}\n" * 2
    assert "in use by instance 'writer'" in platform.polder("volume", "rm", "kept", status=1)[1]
    execute("echo rm >/srv/note")
    platform.polder("rm", "-f", "writer")
    assert platform.polder("run", "--rm", "-v", "kept:/srv", *SMALL, "busybox", "cat", "/srv/note")[0] == "rm\n"
    platform.polder("volume", "rm", "kept")


def test_a_user_networks_forwards_answer_on_the_hosts_loopback(platform):
    """On a host that has nothing but its loopback; and again when passt has died."""
    script = "mkdir /www; head -c 200000 /dev/zero >/www/zeros; exec httpd -f -p 80 -h /www"
    platform.polder("network", "create", "--kind", "user", "easy")
    platform.polder("run", "-d", "--name", "server", "--network", "easy", "-p", "8081:80", "-p", "127.0.0.1:8082:80", *SMALL,
                    "busybox", "sh", "-c", script)
    files = platform.run / "networks/passt"

    def check():
        for port in (8081, 8082):
            fetch = platform.inside("curl", "-sS", "-m", "5", "--noproxy", "*", f"http://127.0.0.1:{port}/zeros")
            assert platform.until(lambda: subprocess.run(fetch, capture_output=True, timeout=20).stdout) == bytes(200000)

    def passt():
        pid, = [int(path.read_text() or 0) for path in files.glob("*.pid")]
        return pid

    check()
    for _ in range(2):
        dead = passt()
        os.kill(dead, signal.SIGKILL)
        platform.until(lambda: passt() not in (0, dead))
        check()
    platform.polder("rm", "-f", "server")
    platform.until(lambda: not list(files.iterdir()))


def test_an_import_is_seen_and_can_be_cancelled(platform):
    """By others than who sends it, while it goes on."""
    data = platform.archive.read_bytes()
    connection = platform.client.connect(30)
    connection.putrequest("PUT", "/v1/images/import?ref=never-there")
    connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(data[:len(data) // 2])

    def of_import():
        running = [o for o in platform.client.get("/v1/operations") if o["kind"] == "image.import" and o["state"] == "running"]
        return running and running[0].get("progress", {}).get("done", 0) > 0 and running[0]

    operation = platform.until(of_import)
    assert operation["target"] == "images/never-there"
    platform.client.delete(f"/v1/operations/{operation['id']}")
    connection.send(data[len(data) // 2:])
    assert connection.getresponse().status == 503
    connection.close()
    assert platform.client.get(f"/v1/operations/{operation['id']}", wait=10)["state"] == "cancelled"
    assert "never-there" not in platform.polder("image", "ls", "-q")[0]


def test_what_an_instance_uses_is_counted(platform, idle):
    """By its machine, not by the guest; and the same for Prometheus."""
    work = "head -c 5000000 /dev/urandom >/root/noise; sync; for i in 1 2 3 4 5; do nslookup idle 10.88.0.1; done"
    platform.polder("exec", idle, "--", "sh", "-c", work)
    stats = platform.client.get(f"/v1/instances/{idle}/stats")
    assert stats["disk_write_bytes"] > 5000000 and stats["disk_read_bytes"] > 100000
    assert stats["net_tx_bytes"] > 300 and stats["net_rx_bytes"] > 300
    assert stats["cpu_usage_ns"] > 0 and stats["guest"]["processes"] > 1
    row, = [line for line in platform.polder("stats", "--no-stream", idle)[0].splitlines() if line.startswith(idle)]
    assert row.count("MiB") >= 3 and re.search(r" [1-9]\d*$", row.rstrip()), row
    text = platform.client.raw("GET", "/metrics")[2].decode()
    label = f'{{name="idle",id="{platform.document(idle)["id"]}"}}'
    for name, least in (("disk_written_bytes_total", 5000000), ("network_receive_bytes_total", 300), ("cpu_seconds_total", 0.01),
                        ("memory_bytes", 1 << 20), ("memory_limit_bytes", 128 << 20)):
        value, = [line.split()[1] for line in text.splitlines() if line.startswith(f"polder_instance_{name}{label} ")]
        assert float(value) >= least, name


def test_a_plain_users_polderd(platform):
    """Images, volumes and a network without root: beside one that runs as root."""
    nobody = 65534
    as_user = ("setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups")
    daemon = Platform(prefix=as_user, env={"PATH": "/usr/bin:/bin"})
    shutil.copytree(image("microvm"), daemon.home / "guest")
    os.chown(daemon.home, nobody, nobody)
    daemon.args = ("--guest-dir", daemon.home / "guest", "--engine", "jit")
    with daemon:
        daemon.polder("image", "import", platform.archive, "busybox")
        daemon.polder("volume", "create", "kept")
        script = "echo kept >/srv/note; stat -c %u:%a /bin/busybox; ip route"
        out = daemon.polder("run", "--rm", *SMALL, "-v", "kept:/srv", "busybox", "sh", "-c", script)[0]
        assert out.startswith("0:755\ndefault via 10.0.2.1 ")
        assert daemon.polder("run", "--rm", *SMALL, "-v", "kept:/srv", "busybox", "cat", "/srv/note")[0] == "kept\n"


def test_a_guest_that_reboots_runs_its_command_anew(platform):
    """In the same machine, with what it wrote; no restart by the policy, which is for the command's end."""
    script = f"echo run >>/root/runs; {SYNCED}; exec sleep 10000"
    platform.polder("run", "-d", "--name", "again", *SMALL, "busybox", "sh", "-c", script)
    platform.until(lambda: is_synced(platform, "again"))
    before = platform.document("again")["status"]
    platform.polder("exec", "again", "--", "reboot", "-f", status=125)  # nobody is left to say how it ended

    def runs():
        return platform.polder("exec", "again", "--", "cat", "/root/runs", status=None)[0]

    platform.until(lambda: runs() == "run\nrun\n", timeout=60)
    after = platform.document("again")["status"]
    assert (after["pid"], after["restarts"]) == (before["pid"], 0)
    platform.polder("rm", "-f", "again")
