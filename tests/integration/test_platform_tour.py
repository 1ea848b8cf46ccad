"""The platform as a user has it: the real `polder` against a real polderd, with machines on jit and a busybox image."""
import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import termios
import time

import pytest

from busybox_platform import SMALL, busybox_platform
from polderd import BIN, SCALE, TOP


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    with busybox_platform(tmp_path_factory.mktemp("tour")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def web(platform):
    """An instance that runs on, with a port forward."""
    script = "echo out; echo err >&2; mkdir -p /www; echo hello from the guest >/www/index.html; exec httpd -f -p 80 -h /www"
    platform.polder("run", "-d", "--name", "web", "-p", "8080:80", *SMALL, "busybox", "sh", "-c", script)
    return "web"


def test_run(platform):
    assert platform.polder("run", "--rm", *SMALL, "busybox", "echo", "hello")[0] == "hello\n"
    platform.polder("run", "--rm", *SMALL, "busybox", "sh", "-c", "exit 9", status=9)
    assert platform.client.get("/v1/instances") in ([], {"instances": []})


def test_exec(platform, web):
    out, err = platform.polder("exec", web, "--", "sh", "-c", "echo out; echo err >&2; exit 3", status=3)
    assert (out, err) == ("out\n", "err\n")
    assert platform.polder("exec", "-i", web, "--", "cat", stdin=b"data\n" * 1000)[0] == "data\n" * 1000
    platform.polder("exec", web, "--", "sh", "-c", "no-such-program", status=127)


def test_prune(platform, web):
    assert platform.polder("image", "prune")[0].startswith("freed ")
    assert json.loads(platform.polder("image", "prune", "-o", "json")[0])["blobs"] == 0
    assert "did you mean" not in platform.polder("cp", "/no/such/file", f"{web}:/", status=1)[1]


def test_logs_and_state(platform, web):
    platform.until(lambda: "out" in platform.polder("logs", web)[0])
    assert re.search(r"^web\b.*running", platform.polder("ps")[0], re.M)
    assert web in platform.polder("stats", "--no-stream")[0]
    assert json.loads(platform.polder("inspect", web)[0])


def slow_header(platform):
    """How long a client lasts that sends one byte a second."""
    started = time.monotonic()
    with socket.socket(socket.AF_UNIX) as s, contextlib.suppress(ConnectionError):
        s.connect(str(platform.socket))
        s.settimeout(1)
        while time.monotonic() - started < 100:
            s.sendall(b"a")
            with contextlib.suppress(socket.timeout):
                if not s.recv(1):
                    break
    return time.monotonic() - started


def test_a_minute(platform, web):
    """Is what a header may take, and nothing to a session, where nothing is said for so long."""
    command = platform.command("exec", "-i", web, "--", "sh", "-c", "cat; exit 3")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        time.sleep(1)
        assert 50 < slow_header(platform) < 80 * SCALE
        time.sleep(2)
        assert session.communicate(b"still there\n", timeout=30 * SCALE)[0] == b"still there\n"
        assert session.returncode == 3


@pytest.mark.parametrize("question", ["wait", "logs?follow=1"])
def test_who_leaves_is_not_waited_for(platform, web, question):
    """Each would else keep a thread and a connection of polderd's as long as the instance runs on."""
    def threads():
        return len(os.listdir(f"/proc/{platform.process.pid}/task"))
    before, clients = threads(), []
    for _ in range(20):
        clients.append(platform.client.connect(30))
        clients[-1].request("GET", f"/v1/instances/{web}/{question}")
    platform.until(lambda: threads() >= before + 20)
    for client in clients:
        client.close()
    platform.until(lambda: threads() < before + 10)


def test_port_forward(platform, web):
    fetch = platform.inside("curl", "-sS", "-m", "5", "http://127.0.0.1:8080/")
    assert platform.until(lambda: subprocess.run(fetch, capture_output=True, timeout=20).stdout) == b"hello from the guest\n"


def test_copy(platform, web, tmp):
    data = os.urandom(300000)
    (tmp / "sent").write_bytes(data)
    platform.polder("cp", tmp / "sent", f"{web}:/root/")
    platform.polder("cp", f"{web}:/root/sent", tmp / "back")
    assert (tmp / "back").read_bytes() == data


class Terminal:
    """A command on a terminal of 33 rows and 91 columns."""

    def __init__(self, argv):
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (33, 91))
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.seen = b""

    def type(self, text):
        os.write(self.master, text)

    def expect(self, pattern, timeout=30):
        """Forgets what it saw up to the end of the match."""
        deadline = time.monotonic() + timeout * SCALE
        while not (match := re.search(pattern, self.seen)):
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], self.seen
            self.seen += os.read(self.master, 65536)
        self.seen = self.seen[match.end():]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_terminal(platform, web):
    with Terminal(platform.command("exec", "-it", web, "--", "sh")) as terminal:
        terminal.expect(rb"# ")
        terminal.type(b"stty size\r")
        terminal.expect(rb"\n33 91\r")
        terminal.type(b"echo go$((1+1)); sleep 100\r")
        terminal.expect(rb"\ngo2\r")
        time.sleep(0.3)  # for the shell to have started it
        terminal.type(b"\x03")
        terminal.type(b"echo status $?\r")
        terminal.expect(rb"\nstatus 130\r")
        terminal.type(b"exit 5\r")
        assert terminal.process.wait(30 * SCALE) == 5


def test_daemon_killed(platform, web):
    before = platform.document(web)["status"]["pid"]
    platform.restart(signal.SIGKILL)
    assert platform.polder("exec", web, "--", "echo", "still here")[0] == "still here\n"
    assert platform.document(web)["status"]["pid"] == before


def test_stop_and_start(platform, web):
    platform.polder("exec", web, "--", "sh", "-c", "echo kept >/root/file; sync")
    platform.polder("stop", "-t", "1", web)
    assert not re.search(r"^web\b", platform.polder("ps")[0], re.M)
    platform.polder("start", web)
    assert platform.polder("exec", web, "--", "cat", "/root/file")[0] == "kept\n"
    platform.polder("rm", web, status=1)
    platform.polder("rm", "-f", web)
    assert "web" not in platform.polder("ps", "-a")[0]


def test_volume_outlives_its_user(platform):
    platform.polder("volume", "create", "data")
    platform.polder("run", "--rm", *SMALL, "-v", "data:/srv", "busybox", "sh", "-c", "echo kept >/srv/file")
    assert platform.polder("run", "--rm", *SMALL, "-v", "data:/srv", "busybox", "cat", "/srv/file")[0] == "kept\n"
    platform.polder("volume", "rm", "data")


def test_a_volume_is_unmounted_wherever_it_was(platform, tmp_path):
    platform.polder("volume", "create", "--size", "64M", "blank")
    platform.polder("run", "--rm", *SMALL, "-v", "blank:/with a blank", "busybox", "sh", "-c", "echo kept >'/with a blank/file'")
    platform.polder("volume", "export", "--format", "raw", "blank", tmp_path / "disk")
    features = subprocess.run(["dumpe2fs", "-h", tmp_path / "disk"], capture_output=True, text=True, check=True).stdout
    assert "has_journal" in features and "needs_recovery" not in features
    platform.polder("volume", "rm", "blank")


def test_readme(platform):
    """The tour's commands, as they stand there, with the busybox image under Debian's name."""
    tour, = re.findall(r"^```sh\n(.*?)^```$", (TOP / "README.md").read_text(), re.M | re.S)
    platform.polder("image", "tag", "busybox", "debian")
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "POLDER_SOCKET": str(platform.socket)}
    done = subprocess.run(platform.inside("sh", "-ex"), input=tour.encode(), env=env, capture_output=True, timeout=100 * SCALE)
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode()
    assert out.startswith('PRETTY_NAME="busybox"\n') and out.split("\n")[-3:-1] == ["kept", "data"]
